"""The directory of log files: rotation, and forwarding to standard error."""
