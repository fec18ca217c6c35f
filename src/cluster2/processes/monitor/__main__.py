"""Entry point of the monitor's process. The master executes it with the channel's descriptor in `_CLUSTER2_CHANNEL`."""

import sys

if __name__ == "__main__":
    from cluster2.processes.monitor.monitor_server import main

    sys.exit(main())
