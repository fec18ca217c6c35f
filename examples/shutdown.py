"""Shut the server of this directory down gracefully: it completes the requests under way, then exits.

Run it:  python examples/shutdown.py [PIDS]
"""

import sys

from cluster2 import Cluster

Cluster(pids=sys.argv[1] if len(sys.argv) > 1 else "pids").shutdown()
