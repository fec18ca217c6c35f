"""Generations of the app: loading, replacing, and where their workers are forked."""
