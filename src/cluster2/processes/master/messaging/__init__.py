"""Messages between user code in the master and in workers."""
