"""The processes of a cluster, and where they meet: launch, child processes, a single process."""
