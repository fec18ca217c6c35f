"""The engine `tcp`: stream handlers and asyncio protocols."""
