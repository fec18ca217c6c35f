"""WSGI: environ and response (PEP 3333), calls on the loop and in threads."""
