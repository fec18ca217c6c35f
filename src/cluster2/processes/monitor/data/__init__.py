"""What the monitor knows: samples of the scoreboard, rates, history, events."""
