"""Measurement of requests in a worker: how long handlers hold the loop or a thread."""
