"""Servers that run an app inside a worker, behind one Protocol."""
