"""Who may use the monitor: tokens, connection limits, security headers."""
