"""Decisions and states, as functions and values: pure, without a system or a clock."""
