"""Executed as `python -I -S …/cluster2/processes/keeper`: without site, so that it starts in milliseconds and stays small."""

import os
import sys

if __name__ == "__main__":
    # -S leaves the path without site-packages; what is needed stands beside us.
    sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3)))
    from cluster2.processes.keeper.keeper_loop import main

    main(sys.argv[1:])
