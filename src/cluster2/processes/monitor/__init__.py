"""The monitor: a process beside the workers that tells how the cluster is, on a port of its own."""
