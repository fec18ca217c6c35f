"""Development mode, as the processes of a cluster know it (`dev.session` starts the cluster)."""

from __future__ import annotations

import os

SOURCES_VARIABLE = "_CLUSTER2_SOURCES"
"""The variable that turns development mode on for a master and its zygotes. It names the file in which each zygote reports the
folders that the app was imported from. It does not reach the app."""


def is_on() -> bool:
    """Return whether this process belongs to a cluster in development."""
    return SOURCES_VARIABLE in os.environ
