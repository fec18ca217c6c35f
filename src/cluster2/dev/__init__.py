"""Development mode: a cluster that loads the app again after each edit."""
