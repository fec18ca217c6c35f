"""Connections of a worker: accepting, handing off, how many it can have."""
