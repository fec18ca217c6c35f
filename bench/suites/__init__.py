"""The suites: each measures a few of the project's promises, side by side with other servers."""
