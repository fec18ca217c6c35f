"""The monitor: the process that serves the page, health checks and metrics on a port of its own."""
