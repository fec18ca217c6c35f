"""What can go wrong with a measurement."""


class BenchError(Exception):
    """A measurement can't be made; the text is one line that names the thing and the way out."""


class NotAvailable(BenchError):
    """A server isn't installed here: its column stays empty, the others are measured."""
