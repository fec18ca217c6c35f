"""The process that holds connections between two requests; it has no HTTP and no app, and needs only the standard library."""
