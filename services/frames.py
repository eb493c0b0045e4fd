"""WebSocket frames of a server, built by hand: a header of 2, 4 or 10 bytes and the payload. Pure.

They are unmasked and unfragmented. The `websockets` library does everything else; its frame objects cost
more than the rest of the simulator's work on a tick.
"""

from collections.abc import Iterable

TEXT = 0x81
BINARY = 0x82


def header(first: int, length: int) -> bytes:
    """Return the header of a frame. first: TEXT or BINARY."""
    if length < 126:
        return bytes((first, length))
    if length < 1 << 16:
        return bytes((first, 126)) + length.to_bytes(2, "big")
    return bytes((first, 127)) + length.to_bytes(8, "big")


_SHORT = [header(TEXT, length) for length in range(2048)]


def text_frame(payload: bytes) -> bytes:
    return header(TEXT, len(payload)) + payload


def binary_frame(payload: bytes) -> bytes:
    return header(BINARY, len(payload)) + payload


def text_frames(payloads: Iterable[bytes]) -> bytes:
    """Return the concatenated frames, one per payload."""
    parts: list[bytes] = []
    for payload in payloads:
        length = len(payload)
        parts.append(_SHORT[length] if length < 2048 else header(TEXT, length))
        parts.append(payload)
    return b"".join(parts)
