"""Bounds of a connection. A client that exceeds one gets an error response, and its connection ends."""

from __future__ import annotations

MAX_HEAD_BYTES = 1 << 16
"""Target, names and values of a request's head, as parsed (431)."""
MAX_RAW_HEAD_BYTES = 1 << 17
"""Bytes on the wire of a head that isn't complete, whitespace included (431)."""
MAX_TARGET_BYTES = 1 << 15
"""A request's target (414)."""
MAX_HEADERS = 256
"""Header lines of a request (431)."""
MAX_SLICE_BYTES = 1 << 14
"""Bytes given to the parser in one step. What is checked after a step is exact to so many bytes."""
MAX_PIPELINED = 16
"""Requests that may wait behind the one that is served, and more be read. What one slice brings is kept, however many."""
MAX_UNREAD_BODY_BYTES = 1 << 16
"""Bytes of a request's body that may wait for the app. Reading pauses above."""
MAX_BODYLESS_BYTES = 1 << 17
"""Bytes on the wire that bring nothing: chunk extensions and trailers (400), empty lines before a request (431)."""
MAX_DISCARDED_BYTES = 1 << 20
"""Bytes of a body that are read and dropped after its response, so that the connection can go on. Above, it ends."""
MAX_LINGER_BYTES = 1 << 20
"""Bytes that are read and dropped after our side has ended, unless they are of a body that we have answered early."""
LINGER_S = 1.0
"""Seconds without a byte that a client may take to notice that our side has ended, before the connection is closed."""
LINGER_TOTAL_S = 30.0
"""Seconds that a client may go on sending to a side that has ended: some read no response before all of their body is out."""
TCP_PROBE_INTERVAL_S = 10
"""Seconds between two probes whether a client that has ended its side is still there, while its request is served."""
INTERIM_RESPONSE_INTERVAL_S = 5
"""Seconds between two `100 Continue` to such a client, as long as its response hasn't begun: a closed socket resets them."""
MAX_JOINED_BODY_BYTES = 1 << 14
"""Up to so many bytes of a body are copied behind the head, for one write. A larger body is written beside it."""
STREAM_HOLD_S = 0.001
"""Seconds after a write within which the next part of a stream is held for those that follow it in the same step of the loop."""
MAX_STREAM_HOLD_BYTES = 1 << 16
"""Bytes of a stream that are held. With more, they are written."""
MESSAGES_PER_TURN = 256
"""Messages of a stream after which its app lets the loop turn once. Else one that waits for nothing else would hold the loop."""
MESSAGES_AFTER_DISCONNECT = 100
"""Messages to a client that has gone, after which the app is slowed down."""
DISCONNECTED_SEND_PAUSE_S = 0.01
"""Seconds that each `MESSAGES_PER_TURN` further ones take."""
MESSAGES_BEFORE_CANCEL = 3
"""Messages that an app whose client has gone may still send in a drain before it is cancelled: a response's head, body, end."""
