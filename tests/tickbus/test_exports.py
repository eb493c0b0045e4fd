"""The front door: what `import tickbus` offers, and that it says what it is."""

import inspect
from enum import Enum

import pytest

import tickbus

PUBLIC = [name for name in tickbus.__all__ if not name.startswith("__")]


def test_only_public_names_are_shown() -> None:
    assert {name for name in dir(tickbus) if not name.startswith("__")} == set(PUBLIC)
    assert set(tickbus.__all__) <= set(dir(tickbus))
    assert sorted(tickbus.__all__) == list(tickbus.__all__)


def test_names_are_the_ones_that_users_write() -> None:
    """A change here is a change for every user: CHANGELOG, docs/releasing.md."""
    assert set(PUBLIC) == {
        "Bar", "Batch", "Bus", "ConfigError", "Consumer", "Fenced", "Flag", "Gap", "GapKind", "Message",
        "Output", "Quote", "RedisError", "RedisMisconfigured", "RedisUnavailable",
        "RelayError", "RelayRefused", "RelayUnavailable", "Side", "Signal", "SignalState",
        "Stream", "StreamId", "StreamKind", "Subscription", "SubscriptionState", "TickbusError", "Trade",
        "VendorRefused", "Want", "WireError", "as_json", "connect",
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "Message"])  # a union has no docstring
def test_public_names_are_documented(name: str) -> None:
    value = getattr(tickbus, name)
    own = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
    assert own and "@" not in own.split("\n")[0]


@pytest.mark.parametrize("owner", [tickbus.Bus, tickbus.Subscription, tickbus.Consumer, tickbus.Batch])
def test_public_methods_are_documented(owner: type) -> None:
    for name, value in vars(owner).items():
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            assert value.__doc__, f"{owner.__name__}.{name}"


@pytest.mark.parametrize(
    "name",
    ["connect", "Batch", "Consumer", "Output", "Subscription", "Trade", "Quote", "Gap", "Bar", "Signal"],
)
def test_an_example_is_part_of_the_docstring(name: str) -> None:
    assert "\n    " in inspect.cleandoc(getattr(tickbus, name).__doc__)


@pytest.mark.parametrize("method", ["read", "snapshot", "consume"])
def test_an_example_is_part_of_each_method_of_a_bus(method: str) -> None:
    assert "bus." + method in inspect.cleandoc(getattr(tickbus.Bus, method).__doc__).split("Errors:")[1]


def test_enums_explain_their_members() -> None:
    assert all(issubclass(getattr(tickbus, name), Enum) for name in ("Flag", "GapKind", "Side", "StreamKind"))
