from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from services.frames import binary_frame, text_frame, text_frames

_sizes = st.sampled_from([0, 1, 125, 126, 127, 2047, 2048, 65535, 65536, 70000])


def read(data: bytes) -> list[tuple[int, bytes]]:
    """Return (opcode, payload) of each frame, as a client reads them."""
    protocol = ClientProtocol(parse_uri("ws://x"), state=State.OPEN, max_size=None)
    protocol.receive_data(data)
    return [
        (event.opcode, bytes(event.data)) for event in protocol.events_received() if isinstance(event, Frame)
    ]


@given(st.lists(_sizes, max_size=5))
def test_client_reads_the_payloads_of_frames(sizes: list[int]) -> None:
    payloads = [b"x" * size for size in sizes]
    expected = [(Opcode.TEXT, payload) for payload in payloads]
    assert read(text_frames(payloads)) == expected
    assert text_frames(payloads) == b"".join(map(text_frame, payloads))
    assert read(b"".join(map(binary_frame, payloads))) == [(Opcode.BINARY, payload) for payload in payloads]
