"""What the monitor serves over HTTP."""
