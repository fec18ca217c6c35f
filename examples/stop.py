"""Stop the server of this directory at once: requests in flight are lost.

Run it:  python examples/stop.py [PIDS]
"""

import sys

from cluster2 import Cluster

Cluster(pids=sys.argv[1] if len(sys.argv) > 1 else "pids").stop()
