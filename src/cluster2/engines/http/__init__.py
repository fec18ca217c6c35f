"""The engine `http`: an HTTP/1.1 and websocket server on public APIs of httptools and websockets."""
