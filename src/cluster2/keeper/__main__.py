"""Executed as `python -I -S …/cluster2/keeper`: without site, so that it starts in milliseconds and stays small."""

import os
import sys

if __name__ == "__main__":
    # -S leaves the path without site-packages; what is needed stands beside us.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from cluster2.keeper.main import main

    main(sys.argv[1:])
