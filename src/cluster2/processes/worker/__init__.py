"""A worker: it serves the app."""
