"""The process that imports the app once and forks workers."""
