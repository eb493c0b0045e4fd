"""A vendor's own options: shown under its heading, kept away from the others, checked against its plans."""

from dataclasses import replace

import pytest
from support.processes import tickbus
from vendors.examples import setup

from services.vendors import VENDORS
from services.vendors.alltick.options import AllTickOptions, Plan
from services.vendors.symbols import SymbolMap
from tickbus.errors import ConfigError
from tickbus.units import SECOND


def test_help_shows_vendor_options_under_their_own_heading() -> None:
    """Once a feed is chosen, the options of the others are left out."""
    everything = tickbus("gateway", "--help", COLUMNS="200").stdout
    assert "--alltick-plan" in everything.split("\noptions of alltick:")[1]
    chosen = tickbus("gateway", "--feed", "binance", "--help", COLUMNS="200")
    assert chosen.returncode == 0
    assert "--symbols" in chosen.stdout
    assert "--alltick-plan" not in chosen.stdout
    assert "--alltick-plan" in tickbus("gateway", "--feed", "alltick", "--help").stdout


def test_option_of_another_vendor_is_refused() -> None:
    done = tickbus("gateway", "--feed", "json", "--symbols", "AAPL.US", "--alltick-plan", "free")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--alltick-plan" in line
    assert "json" in line


@pytest.mark.parametrize(("plan", "symbols", "interval"), [("free", 5, 10), ("basic", 100, 3)])
def test_plan_limits_codes_and_pace(plan: Plan, symbols: int, interval: int) -> None:
    """The limits are the vendor's, 2026-08; a connection that would be refused there is refused here."""
    feed = VENDORS["alltick"].feed

    def with_symbols(count: int) -> SymbolMap:
        return SymbolMap([f"S{number}.US" for number in range(count)], feed.to_vendor_symbol, {})

    def configured(count: int) -> None:
        plain = setup("alltick", token="t", options=AllTickOptions(alltick_plan=plan))
        one = feed(replace(plain, symbols=with_symbols(count)))
        assert one.reconnect_interval == interval * SECOND

    configured(symbols)
    with pytest.raises(ConfigError, match=f"{symbols + 1}, plan {plan} allows {symbols} per connection"):
        configured(symbols + 1)
