"""Globs and scopes."""

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.relay.selection import Glob, Scope, Selection, Symbols
from tickbus.protocol.names import Stream

TEXT = st.text("ABX-.", max_size=8)


@given(st.lists(TEXT, min_size=1, max_size=3).map("*".join).filter(bool), TEXT)
def test_glob_matches_as_a_shell_does(pattern: str, symbol: str) -> None:
    assert Glob(pattern).matches(symbol) == fnmatch.fnmatchcase(symbol, pattern)


@pytest.mark.parametrize("text", ["", "a", "A B", "*" * 3, "A*B*C*", "A" * 65, "A[BC]", "A?"])
def test_other_patterns_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid symbol"):
        Glob(text)


def test_no_symbols_means_all() -> None:
    assert "ANY" in Symbols()
    assert "BTC-USDT" in Symbols.parse(["BTC-*"])
    assert "ETH-USDT" not in Symbols.parse(["BTC-*"])
    assert "ETH-USDT" in Symbols.parse(["BTC-*", "ETH-USDT"])


def test_scope_bounds_every_selection() -> None:
    scope = Scope(frozenset(("trade",)), Symbols.parse(["BTC-*"]), frozenset(("binance",)))
    everything = Selection("trade", Symbols(), frozenset(), frozenset(), scope)
    assert everything(Stream("trade", "binance", "BTC-USDT"))
    assert not everything(Stream("trade", "binance", "ETH-USDT"))
    assert not everything(Stream("trade", "kraken", "BTC-USDT"))
    assert not Selection("quote", Symbols(), frozenset(), frozenset(), scope)(
        Stream("quote", "binance", "BTC-USDT")
    )
