"""The state of the cluster that the parts of the master share: phase, workers, inbox messages."""
