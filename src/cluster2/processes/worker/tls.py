"""The TLS context of a worker's listeners."""

from __future__ import annotations

import ssl

from ...config.settings import Settings


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """Return the context that the options describe, or None for plain connections.

    Each worker reads the files. They are copies that the master made when it loaded the generation (`linux.file_snapshots`): a
    reload serves a renewed certificate, and a broken file on disk doesn't prevent the replacement of a worker.
    """
    if settings.ssl_certfile is None:
        return None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, settings.ssl_keyfile_password)
    # RFC 9113, 9.2.1 forbids renegotiation in HTTP/2; HTTP/1.1 doesn't need it.
    made.options |= ssl.OP_NO_RENEGOTIATION
    made.set_alpn_protocols(["h2", "http/1.1"] if settings.http2 else ["http/1.1"])
    if settings.ssl_ca_certs is not None:
        made.load_verify_locations(settings.ssl_ca_certs)
        made.verify_mode = ssl.CERT_REQUIRED
    return made
