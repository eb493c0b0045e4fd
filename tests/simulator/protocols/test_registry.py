import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.protocols.registry import Refusal, bare_path, open_session
from services.simulator.protocols.session import VendorLimits


@pytest.mark.parametrize(
    ("target", "protocol"),
    [
        ("/ws", "binance"), ("/ws/btcusdt@trade", "binance"), ("/stream?streams=a@trade", "binance"), ("/stream", "binance"),
        ("/quote-b-ws-api?token=x", "alltick"), ("/quote-stock-b-ws-api?token=x", "alltick"),
        ("/", "json"), ("/anything?x=1", "json"), ("/wsx", "json"), ("//[", "json"),
    ],
)  # fmt: skip
def test_the_path_chooses_the_protocol(target: str, protocol: str) -> None:
    session = open_session(target, VendorLimits(), 0)
    assert not isinstance(session, Refusal)
    assert session.protocol == protocol


def test_a_path_to_be_logged_has_no_token() -> None:
    assert bare_path("/quote-b-ws-api?token=secret") == "/quote-b-ws-api"
    assert bare_path("?token=secret") == "/"


@given(st.text())
def test_any_target_opens_a_session_or_is_refused(target: str) -> None:
    answer = open_session(target, VendorLimits(), 0)
    assert isinstance(answer, Refusal) or answer.protocol in ("binance", "alltick", "json")
