"""`python -m cluster2` is the command `cluster2`."""

from cluster2.cli import main

main()
