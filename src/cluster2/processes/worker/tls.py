"""The TLS context of a worker's listeners."""

from __future__ import annotations

import ssl

from ...config.settings import Settings


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """The context that the options describe, or None for plain connections.

    Each worker reads the files, which are copies that were made when its generation was loaded (`kernel.snapshots`): a
    reload serves a renewed certificate, and a broken file on disk keeps no worker from being replaced.
    """
    if settings.ssl_certfile is None:
        return None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, settings.ssl_keyfile_password)
    made.options |= ssl.OP_NO_RENEGOTIATION  # RFC 9113, 9.2.1; and nobody else needs it
    made.set_alpn_protocols(["h2", "http/1.1"] if settings.http2 else ["http/1.1"])
    if settings.ssl_ca_certs is not None:
        made.load_verify_locations(settings.ssl_ca_certs)
        made.verify_mode = ssl.CERT_REQUIRED
    return made
