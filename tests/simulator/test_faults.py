import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.faults import ACTIONS, Fault, FaultSchedule, parse_faults
from tickbus.errors import ConfigError
from tickbus.units import SECOND


def test_faults_are_separated_by_semicolons_and_reason_takes_the_rest() -> None:
    assert parse_faults(
        "after=1000 mute=5s; at=3s  close=1011 reason=going down;; "
        "every=500 drop=2 kind=trade symbol=BTCUSDT;cut"
    ) == [
        Fault("mute", 5 * SECOND, "after", 1000),
        Fault("close", 1011, "at", 3 * SECOND, reason="going down"),
        Fault("drop", 2, "every", 500, kind="trade", symbol="BTCUSDT"),
        Fault("cut"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("explode=3", "unknown word 'explode': expected one of mute"),
        ("drop", "expected drop=N"),
        ("drop=0", "invalid number '0': expected a whole number, at least 1"),
        ("drop=3 drop=3", "duplicate word drop"),
        ("drop=3 cut", "one action"),
        ("after=3", "one action"),
        ("after=3 at=2s cut", "at most one of after"),
        ("cut=3", "cut takes no value"),
        ("mute=5", "invalid duration '5'"),
        ("close=1005", "invalid close code '1005'"),
        ("close=1000 reason=" + "x" * 124, "123 bytes"),
        ("huge=2GB", "1B to 1GB"),
        ("mute=1s symbol=A", "mute affects whole connections"),
        ("drop=1 kind=bar", "invalid kind 'bar': expected trade or quote"),
        ('drop=1 symbol=A"B', "vendor spells it"),
        ("drop=1 reason=none", "only close does"),
    ],
)
def test_error_in_a_fault_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"^fault ") as caught:
        parse_faults(text)
    assert message in str(caught.value)
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
def test_any_text_is_parsed_or_a_config_error(text: str) -> None:
    try:
        faults = parse_faults(text)
    except ConfigError:
        return
    assert parse_faults(";".join(map(str, faults))) == faults


def test_schedule_counts_from_the_moment_a_fault_is_given() -> None:
    schedule = FaultSchedule()
    schedule.ticks = 100
    schedule.add(Fault("drop", 1, "after", 5), now=0)
    schedule.add(Fault("cut", 0, "at", 3 * SECOND), now=SECOND)
    schedule.add(Fault("garbage", 1), now=0)
    assert schedule.take_due(SECOND) == [Fault("garbage", 1)]
    assert (schedule.ticks_until_due(), schedule.ns_until_due(2 * SECOND)) == (5, 2 * SECOND)
    schedule.ticks = 105
    assert schedule.take_due(2 * SECOND) == [Fault("drop", 1, "after", 5)]
    assert schedule.take_due(4 * SECOND) == [Fault("cut", 0, "at", 3 * SECOND)]
    assert (schedule.ticks_until_due(), schedule.ns_until_due(0)) == (None, None)


def test_every_is_scheduled_again() -> None:
    schedule = FaultSchedule()
    fault = Fault("drop", 1, "every", 10)
    schedule.add(fault, 0)
    due_at = []
    for ticks in range(1, 31):
        schedule.ticks = ticks
        due_at += [ticks for _ in schedule.take_due(0)]
    assert due_at == [10, 20, 30]
    assert schedule.ticks_until_due() == 10
