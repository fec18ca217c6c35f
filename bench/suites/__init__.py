"""The figures: each suite measures a few of the project's promises, side by side with the other servers."""
