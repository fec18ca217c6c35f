"""The process that supervises; it never serves."""
