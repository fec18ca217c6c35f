"""Wrappers around one Linux facility each."""
