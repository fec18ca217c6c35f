"""Executed by the master: `python -P -m cluster2.monitor`, with the channel's descriptor in `_CLUSTER2_CHANNEL`."""

import sys

if __name__ == "__main__":
    from cluster2.monitor.main import main

    sys.exit(main())
