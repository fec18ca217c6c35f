"""The control socket: commands, subscribers, status, the heartbeat event."""
