"""The monitor's data: samples of the scoreboard, rates, history, events."""
