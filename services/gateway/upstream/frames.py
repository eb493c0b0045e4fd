"""Frames of a WebSocket server, split from the TCP stream. Pure: docs/decisions/0004-frames.md."""

_BINARY, _CONTINUATION = 0x2, 0x0
CONTROL_BYTES = 125
"""Longest payload of a control frame."""
MAX_FRAGMENTS = 16_384
"""Frames of one message. Each costs memory and time even if it is empty."""
MAX_CONTROLS = 1_024
"""Control frames in one read from the socket; vendors send a few per minute."""


class FrameSplitter:
    """Splits the TCP bytes of a server into whole messages and control frames. Pure.

    Feed it everything after the handshake. Messages longer than `max_bytes` are skipped without being stored,
    and reported in `skipped`. After a `violation` nothing more is split.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.skipped: list[int] = []
        """How many messages of the last `feed` come before each skipped one."""
        self.violation = ""
        """Why this connection cannot go on: the server sends pieces without end. Empty: it can."""
        self._rest: bytes | bytearray = b""
        """The beginning of a frame whose end has not arrived."""
        self._needed = 0
        """Bytes of that frame, once its header says so."""
        self._skip = 0
        self._parts: list[bytes] = []
        self._size = 0
        """Bytes of the message being assembled from fragments; -1 while it is too long and discarded."""
        self._fragments = 0

    def feed(self, data: bytes) -> tuple[list[bytes], list[bytes]]:
        """Return payloads of data messages, and raw control frames (or broken ones), both in order."""
        messages: list[bytes] = []
        controls: list[bytes] = []
        if self.skipped:
            self.skipped = []
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        if self._rest:
            rest = self._rest
            if len(rest) + len(data) < self._needed:
                # joined once at the end: a long frame may come in very small pieces
                self._rest = rest if isinstance(rest, bytearray) else bytearray(rest)
                self._rest += data
                return messages, controls
            data = bytes(rest + data) if isinstance(rest, bytearray) else rest + data
        self._needed = 0
        position, end = 0, len(data)
        while end - position >= 2:
            first, length = data[position], data[position + 1]
            start = position + 2
            if length == 126:
                if end - position < 4:
                    break
                length = data[start] << 8 | data[start + 1]
                start += 2
            elif length == 127:
                if end - position < 10:
                    break
                length = int.from_bytes(data[start : start + 8], "big")
                start += 8
            elif length > 127:  # masked: no server does that; let the library report it
                controls.append(data[position:])
                position = end
                break
            stop = start + length
            if stop > end:
                # an invalid frame is not waited for: it is an error already
                if length > CONTROL_BYTES and (first & 0x70 or first & 0x0F > _BINARY):
                    controls.append(data[position:])
                    position = end
                elif length > self.max_bytes and first & 0x0F <= _BINARY:
                    self._drop(first, len(messages))
                    self._skip = stop - end
                    position = end
                else:
                    self._needed = stop - position
                break
            if first == 0x81 or first == 0x82:
                if length > self.max_bytes:
                    self.skipped.append(len(messages))
                else:
                    messages.append(data[start:stop])
            elif first & 0x70 or first & 0x0F > _BINARY:
                controls.append(data[position:stop])
            elif (whole := self._fragment(first, data[start:stop], len(messages))) is not None:
                messages.append(whole)
            position = stop
            if self.violation:
                return messages, controls
        self._rest = data[position:]
        if len(controls) > MAX_CONTROLS:
            self.violation = f"more than {MAX_CONTROLS} control frames at once"
        return messages, controls

    def _drop(self, first: int, before: int) -> None:
        """Discard a frame that is too long, or the message it belongs to, after `before` messages."""
        last = bool(first & 0x80)
        if self._size >= 0 or (last and first & 0x0F != _CONTINUATION):  # else already reported
            self.skipped.append(before)
        self._parts, self._size = [], 0 if last else -1
        self._fragments = 0 if last else self._fragments + 1

    def _fragment(self, first: int, payload: bytes, before: int) -> bytes | None:
        self._fragments += 1
        if self._fragments > MAX_FRAGMENTS:
            self.violation = f"a message in more than {MAX_FRAGMENTS} fragments"
            self._parts = []
            return None
        if self._size >= 0:
            self._parts.append(payload)
            self._size += len(payload)
            if self._size > self.max_bytes:
                self.skipped.append(before)
                self._parts, self._size = [], -1
        if not first & 0x80:
            return None
        whole = b"".join(self._parts) if self._size >= 0 else None
        self._parts, self._size, self._fragments = [], 0, 0
        return whole
