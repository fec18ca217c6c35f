"""Access to the monitor: tokens, connection limits, security headers."""
