"""The process that holds connections between two requests. It knows no HTTP and no app, and needs only the standard library."""
