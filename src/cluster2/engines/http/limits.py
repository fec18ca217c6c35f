"""Limits of a connection. A client that exceeds one gets an error response, and its connection ends.

A docstring names the status of that response in parentheses.
"""

from __future__ import annotations

MAX_HEAD_BYTES = 1 << 16
"""Bytes of a request's head as parsed: target, names and values (431)."""
MAX_RAW_HEAD_BYTES = 1 << 17
"""Bytes on the wire of a head that isn't complete, whitespace included (431)."""
MAX_TARGET_BYTES = 1 << 15
"""Bytes of a request's target (414)."""
MAX_HEADERS = 256
"""Header lines of a request (431)."""
MAX_SLICE_BYTES = 1 << 14
"""Bytes that the parser is given in one step. Limits that are checked after a step are exact to this many bytes."""
MAX_PIPELINED = 16
"""Requests that may wait behind the one that is served. With more, reading pauses. All requests of one slice are kept."""
MAX_UNREAD_BODY_BYTES = 1 << 16
"""Bytes of a request's body that may wait for the app. Reading pauses above."""
MAX_BODYLESS_BYTES = 1 << 17
"""Bytes on the wire without content: chunk extensions and trailers (400), empty lines before a request (431)."""
MAX_DISCARDED_BYTES = 1 << 20
"""Bytes of a body that are read and dropped after its response, so that the connection can go on. Above, it ends."""
MAX_LINGER_BYTES = 1 << 20
"""Bytes that are read and dropped after our side has ended. The rest of a body whose response came early isn't limited."""
LINGER_S = 1.0
"""Seconds without a byte that a client may take to notice that our side has ended, before the connection is closed."""
LINGER_TOTAL_S = 30.0
"""Seconds that a client may send to a side that has ended. Some clients read no response before they have sent all of a body."""
TCP_PROBE_INTERVAL_S = 10
"""Seconds between two keep-alive probes of a client that has ended its side, while its request is served."""
INTERIM_RESPONSE_INTERVAL_S = 5
"""Seconds between two `100 Continue` to such a client, as long as its response hasn't begun. A closed socket resets them."""
MAX_JOINED_BODY_BYTES = 1 << 14
"""Bytes of a body that are copied behind the head, for one write. A larger body is passed to the transport without a copy."""
STREAM_HOLD_S = 0.001
"""Seconds after a write within which the next part of a stream is held for the parts that follow it in the same loop step."""
MAX_STREAM_HOLD_BYTES = 1 << 16
"""Bytes of a stream that are held. With more, they are written."""
MESSAGES_PER_TURN = 256
"""Messages of a stream after which `send` yields to the loop once. An app that only sends would hold the loop otherwise."""
MESSAGES_AFTER_DISCONNECT = 100
"""Messages to a client that has gone, after which the app is slowed down."""
DISCONNECTED_SEND_PAUSE_S = 0.01
"""Seconds for which `send` then waits, once in `MESSAGES_PER_TURN` messages."""
MESSAGES_BEFORE_CANCEL = 3
"""Messages that an app whose client has gone may send in a drain before it is cancelled: a response's head, body and end."""
