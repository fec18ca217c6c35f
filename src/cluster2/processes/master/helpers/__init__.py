"""Processes beside the workers: the keeper and the monitor."""
