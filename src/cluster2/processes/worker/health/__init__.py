"""The health check on the app's port."""
