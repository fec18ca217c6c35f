"""The parts that all processes of a cluster share: option sources, app loading, events, logging, periodic steps."""
