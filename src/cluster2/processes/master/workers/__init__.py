"""Workers as the master sees them, from fork to exit."""
