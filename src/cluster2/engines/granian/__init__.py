"""The engine `granian`: RSGI, and by choice ASGI and WSGI, on Rust's hyper."""
