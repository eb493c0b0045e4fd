"""The frame splitter: all at once, byte by byte, against the websockets library's parser, and under fuzz."""

from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from services.gateway.upstream.frames import MAX_CONTROLS, MAX_FRAGMENTS, FrameSplitter

MAX_BYTES = 1000


def frame(opcode: Opcode, payload: bytes, fin: bool = True) -> bytes:
    return Frame(opcode, payload, fin).serialize(mask=False)


def split(pieces: Iterable[bytes], max_bytes: int = MAX_BYTES) -> tuple[list[bytes], list[bytes], list[int]]:
    """Return messages, control frames, and how many messages come before each skipped one."""
    splitter = FrameSplitter(max_bytes)
    messages: list[bytes] = []
    controls: list[bytes] = []
    skipped: list[int] = []
    for piece in pieces:
        some, others = splitter.feed(piece)
        skipped += [len(messages) + before for before in splitter.skipped]
        messages += some
        controls += others
    return messages, controls, skipped


def read_with_library(data: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return messages and control frames as the websockets library reads them."""
    protocol = ClientProtocol(parse_uri("ws://x/"), max_size=None, state=State.OPEN)
    protocol.receive_data(data)
    assert protocol.parser_exc is None
    messages: list[bytes] = []
    controls: list[bytes] = []
    for event in protocol.events_received():
        assert isinstance(event, Frame)
        if event.opcode in (Opcode.PING, Opcode.PONG, Opcode.CLOSE):
            controls.append(event.serialize(mask=False))
        elif event.opcode is Opcode.CONT:
            messages[-1] += bytes(event.data)
        else:
            messages.append(bytes(event.data))
    return messages, controls


SIZES = st.sampled_from([0, 1, 2, 125, 126, 127, 999, 1000, 1001, 1500, 65_535, 65_536, 70_000])
CONTROL = st.tuples(st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=125))


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """Whole and fragmented messages of all lengths, with control frames anywhere between."""
    parts: list[bytes] = []
    for number in range(draw(st.integers(0, 6))):
        letter = bytes([65 + number])
        for opcode, payload in draw(st.lists(CONTROL, max_size=2)):
            parts.append(frame(opcode, payload))
        sizes = draw(st.lists(SIZES, min_size=1, max_size=draw(st.sampled_from([1, 1, 4]))))
        first = draw(st.sampled_from([Opcode.TEXT, Opcode.BINARY]))
        for at, size in enumerate(sizes):
            parts.append(frame(Opcode.CONT if at else first, letter * size, fin=at == len(sizes) - 1))
            if draw(st.booleans()):
                parts.append(frame(Opcode.PING, b"between"))
    return b"".join(parts)


@settings(max_examples=150, deadline=None)
@given(conversations(), st.data())
def test_result_does_not_depend_on_cuts(data: bytes, chance: st.DataObject) -> None:
    whole = split([data])
    cuts = sorted(chance.draw(st.lists(st.integers(0, len(data)), max_size=12)))
    assert (
        split(data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)) == whole
    )
    assert split(data[start : start + 4096] for start in range(0, len(data), 4096)) == whole


@settings(max_examples=60, deadline=None)
@given(conversations().filter(lambda data: len(data) < 10_000))
def test_byte_by_byte_result_is_the_same(data: bytes) -> None:
    assert split(data[at : at + 1] for at in range(len(data))) == split([data])


@settings(max_examples=150, deadline=None)
@given(conversations())
def test_splitter_agrees_with_websockets_library(data: bytes) -> None:
    expected, controls = read_with_library(data)
    assert split([data], max_bytes=1 << 30) == (expected, controls, [])
    expected_messages = [message for message in expected if len(message) <= MAX_BYTES]
    skipped = [
        sum(len(other) <= MAX_BYTES for other in expected[:at])
        for at, message in enumerate(expected)
        if len(message) > MAX_BYTES
    ]
    assert split([data]) == (expected_messages, controls, skipped)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=8))
def test_arbitrary_bytes_are_accepted_within_memory_limit(pieces: list[bytes]) -> None:
    splitter = FrameSplitter(MAX_BYTES)
    for piece in pieces:
        messages, _ = splitter.feed(piece)
        assert all(len(message) <= MAX_BYTES for message in messages)
        assert len(splitter._rest) <= MAX_BYTES + 40 + 10


def test_oversized_frame_is_never_stored() -> None:
    splitter = FrameSplitter(MAX_BYTES)
    whole = frame(Opcode.TEXT, b"x" * 1_000_000) + frame(Opcode.TEXT, b"after")
    found: list[bytes] = []
    skipped = 0
    for at in range(0, len(whole), 1000):
        found += splitter.feed(whole[at : at + 1000])[0]
        skipped += len(splitter.skipped)
        assert len(splitter._rest) <= MAX_BYTES + 10
    assert (found, skipped) == ([b"after"], 1)


def test_oversized_control_frame_is_passed_on_at_once() -> None:
    """It violates the protocol, as do unknown opcodes and masked frames: the library ends the connection."""
    for head in (
        b"\x89\x7e\x10\x00",
        b"\x8a\x7f" + b"\x00\x00\x00\x01\x00\x00\x00\x00",
        b"\x83\x7e\x10\x00",
        b"\x81\x85abcd",
        b"\xc1\x7e\x03\x00",
    ):
        splitter = FrameSplitter(MAX_BYTES)
        messages, controls = splitter.feed(head + b"x" * 50)
        assert (messages, controls) == ([], [head + b"x" * 50])
        assert splitter._rest == b""


# bounds on pieces


def violation(splitter: FrameSplitter, data: bytes) -> str:
    splitter.feed(data)
    return splitter.violation


def test_message_in_too_many_fragments_is_a_violation() -> None:
    """Empty ones too, whether the message is kept or was too long already."""
    for first in (b"x", b"x" * (MAX_BYTES + 1)):
        splitter = FrameSplitter(MAX_BYTES)
        splitter.feed(frame(Opcode.BINARY, first, fin=False))
        assert violation(splitter, frame(Opcode.CONT, b"", fin=False) * (MAX_FRAGMENTS - 2)) == ""
        more = frame(Opcode.CONT, b"", fin=False) * 2
        assert violation(splitter, more) == "a message in more than 16384 fragments"


def test_messages_of_many_fragments_are_joined_each() -> None:
    message = frame(Opcode.TEXT, b"a", fin=False) + frame(Opcode.CONT, b"", fin=False) * 9_000
    splitter = FrameSplitter(MAX_BYTES)
    for _ in range(4):
        assert splitter.feed(message + frame(Opcode.CONT, b"b")) == ([b"ab"], [])
    assert not splitter.violation


def test_flood_of_control_frames_is_a_violation() -> None:
    splitter = FrameSplitter(MAX_BYTES)
    assert violation(splitter, frame(Opcode.PING, b"") * MAX_CONTROLS) == ""
    more = frame(Opcode.PONG, b"") * (MAX_CONTROLS + 1)
    assert violation(splitter, more) == "more than 1024 control frames at once"


@given(st.integers(0, 5_000), st.integers(1, 7))
def test_long_frame_in_small_pieces_is_joined(size: int, step: int) -> None:
    data = frame(Opcode.BINARY, bytes(size)) + frame(Opcode.TEXT, b"after")
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    assert split(pieces, 10_000) == ([bytes(size), b"after"], [], [])
