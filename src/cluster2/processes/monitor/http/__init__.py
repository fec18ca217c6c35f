"""The routes of the monitor, and HAProxy's agent-check."""
