import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.vendors import VENDORS, open_dialect, vendor_of
from services.vendors.dialect import HttpRefusal, VendorLimits, bare_path
from tickbus.errors import ConfigError


@pytest.mark.parametrize(
    ("target", "protocol"),
    [
        ("/ws", "binance"), ("/ws/btcusdt@trade", "binance"), ("/stream?streams=a@trade", "binance"), ("/stream", "binance"),
        ("/quote-b-ws-api?token=x", "alltick"), ("/quote-stock-b-ws-api?token=x", "alltick"),
        ("/", "json"), ("/anything?x=1", "json"), ("/wsx", "json"), ("//[", "json"),
    ],
)  # fmt: skip
def test_the_path_chooses_the_protocol(target: str, protocol: str) -> None:
    dialect = open_dialect(target, VendorLimits(), {}, 0)
    assert not isinstance(dialect, HttpRefusal)
    assert dialect.vendor == protocol


def test_a_path_to_be_logged_has_no_token() -> None:
    assert bare_path("/quote-b-ws-api?token=secret") == "/quote-b-ws-api"
    assert bare_path("?token=secret") == "/"


@given(st.text())
def test_any_target_opens_a_session_or_is_refused(target: str) -> None:
    answer = open_dialect(target, VendorLimits(), {}, 0)
    assert isinstance(answer, HttpRefusal) or answer.vendor in VENDORS


def test_an_unknown_feed_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown feed 'bloomberg': expected one of alltick, binance, json"):
        vendor_of("bloomberg")
