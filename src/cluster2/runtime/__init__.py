"""What every process of a cluster uses: option sources, app loading, events, logging, periodic steps."""
