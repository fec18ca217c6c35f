"""The errors of a measurement."""


class BenchError(Exception):
    """A measurement can't be made. The text is one line that names the thing and the way out."""


class NotAvailable(BenchError):
    """A server isn't installed here. Its column stays empty, and the other servers are measured."""
