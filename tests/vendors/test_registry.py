import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.vendors import VENDORS, get_vendor, open_dialect
from services.vendors.dialect import HttpRefusal, VendorLimits, path_without_query
from tickbus.errors import ConfigError


@pytest.mark.parametrize(
    ("target", "protocol"),
    [
        ("/ws", "binance"),
        ("/ws/btcusdt@trade", "binance"),
        ("/stream?streams=a@trade", "binance"),
        ("/stream", "binance"),
        ("/quote-b-ws-api?token=x", "alltick"),
        ("/quote-stock-b-ws-api?token=x", "alltick"),
        ("/", "json"),
        ("/anything?x=1", "json"),
        ("/wsx", "json"),
        ("//[", "json"),
    ],
)
def test_path_chooses_the_protocol(target: str, protocol: str) -> None:
    dialect = open_dialect(target, VendorLimits(), {}, 0)
    assert not isinstance(dialect, HttpRefusal)
    assert dialect.vendor == protocol


def test_path_without_query_has_no_token() -> None:
    assert path_without_query("/quote-b-ws-api?token=secret") == "/quote-b-ws-api"
    assert path_without_query("?token=secret") == "/"


@given(st.text())
def test_any_target_opens_a_dialect_or_is_refused(target: str) -> None:
    answer = open_dialect(target, VendorLimits(), {}, 0)
    assert isinstance(answer, HttpRefusal) or answer.vendor in VENDORS


def test_error_for_an_unknown_feed_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown feed 'bloomberg': expected one of alltick, binance, json"):
        get_vendor("bloomberg")
