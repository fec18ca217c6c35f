"""The worker's side of messages to and from the master."""
