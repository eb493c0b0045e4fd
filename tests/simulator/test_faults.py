import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.faults import ACTIONS, Fault, Plan, parse_faults
from tickbus.errors import ConfigError
from tickbus.units import SECOND


def test_faults_are_parted_by_semicolons_and_reason_takes_the_rest() -> None:
    assert parse_faults(
        "after=1000 mute=5s; at=3s  close=1011 reason=going down;; every=500 drop=2 kind=trade symbol=BTCUSDT;cut"
    ) == [
        Fault("mute", 5 * SECOND, "after", 1000),
        Fault("close", 1011, "at", 3 * SECOND, reason="going down"),
        Fault("drop", 2, "every", 500, kind="trade", symbol="BTCUSDT"),
        Fault("cut"),
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("explode=3", "unknown word 'explode'; there are mute"),
        ("drop", "write drop=N"),
        ("drop=0", "no whole number from 1 on"),
        ("drop=3 drop=3", "drop stands there twice"),
        ("drop=3 cut", "one action"),
        ("after=3", "one action"),
        ("after=3 at=2s cut", "at most one of after"),
        ("cut=3", "cut takes no value"),
        ("mute=5", "no duration"),
        ("close=1005", "no close code"),
        ("close=1000 reason=" + "x" * 124, "123 bytes"),
        ("huge=2GB", "1B to 1GB"),
        ("mute=1s symbol=A", "choose ticks"),
        ("drop=1 kind=bar", "trade or quote"),
        ('drop=1 symbol=A"B', "vendor spells it"),
        ("drop=1 reason=none", "belongs to close"),
    ],
)
def test_what_is_wrong_is_said(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=r"^fault ") as caught:
        parse_faults(text)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


_words = st.sampled_from([*ACTIONS, "after", "at", "every", "kind", "symbol", "reason"])
_values = st.one_of(
    st.sampled_from(["", "1", "5s", "1MB", "1000", "trade", "0", "²", "1e9"]),
    st.text(max_size=8),
    st.integers().map(str),
)
_clauses = st.lists(
    st.builds(lambda word, value: f"{word}={value}" if value else word, _words, _values), max_size=4
).map(" ".join)


@given(st.one_of(st.text(), st.lists(_clauses, max_size=3).map(";".join)))
def test_any_text_is_faults_or_a_config_error(text: str) -> None:
    try:
        faults = parse_faults(text)
    except ConfigError:
        return
    assert parse_faults(";".join(map(str, faults))) == faults


def test_a_plan_counts_from_the_moment_a_fault_is_given() -> None:
    plan = Plan()
    plan.offered = 100
    plan.add(Fault("drop", 1, "after", 5), now=0)
    plan.add(Fault("cut", 0, "at", 3 * SECOND), now=SECOND)
    plan.add(Fault("garbage", 1), now=0)
    assert plan.due(SECOND) == [Fault("garbage", 1)]
    assert (plan.room(), plan.wait(2 * SECOND)) == (5, 2 * SECOND)
    plan.offered = 105
    assert plan.due(2 * SECOND) == [Fault("drop", 1, "after", 5)]
    assert plan.due(4 * SECOND) == [Fault("cut", 0, "at", 3 * SECOND)]
    assert (plan.room(), plan.wait(0)) == (None, None)


def test_every_comes_again() -> None:
    plan = Plan()
    fault = Fault("drop", 1, "every", 10)
    plan.add(fault, 0)
    fired = []
    for offered in range(1, 31):
        plan.offered = offered
        fired += [offered for _ in plan.due(0)]
    assert fired == [10, 20, 30]
    assert plan.room() == 10
