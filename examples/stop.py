"""Stop the server of this directory at once. Requests under way are lost.

Run it:  python examples/stop.py [PIDS]
"""

import sys

from cluster2 import Cluster

Cluster(pids=sys.argv[1] if len(sys.argv) > 1 else "pids").stop()
