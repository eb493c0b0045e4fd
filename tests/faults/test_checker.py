"""The checker must fail: each kind of damage, planted in the ledgers of a healthy run, is found and named."""

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from faults.checker import METRICS, Result, check
from faults.factories import (
    BARS,
    GRACE,
    HORIZON,
    QUOTES,
    SPEC,
    TRADES,
    healthy,
    hole,
    ledgers_of,
    quote,
    quote_hole,
    sent,
    stream,
    trade,
)
from faults.ledgers import Entry, Ledgers, Planted
from tickbus.protocol.messages import Flag, Gap, GapKind, Trade
from tickbus.protocol.names import StreamId
from tickbus.units import MILLISECOND


def checked(ledgers: Ledgers) -> Result:
    return check(ledgers, [SPEC], GRACE, HORIZON)


def kinds(ledgers: Ledgers) -> set[str]:
    return {verdict.kind for verdict in checked(ledgers).verdicts}


def test_healthy_run_has_no_verdicts() -> None:
    result = checked(healthy())
    assert (result.verdicts, result.sent, result.published, result.lost, result.doubled, result.reported) == (
        [],
        60,
        60,
        0,
        0,
        0,
    )


def test_ticks_reported_by_a_gap_are_not_lost() -> None:
    result = checked(healthy(missing=range(10, 15)))
    assert (result.verdicts, result.published, result.lost, result.reported) == ([], 50, 0, 10)


@pytest.mark.parametrize("name", [TRADES, QUOTES])
def test_lost_tick_is_found(name: str) -> None:
    ledgers = healthy()
    ticks = [entry.message for entry in ledgers.published[name]]
    result = checked(ledgers_of(ledgers.sent, {**ledgers.published, name: stream(*ticks[:7], *ticks[8:])}))
    assert (result.lost, {verdict.kind for verdict in result.verdicts}) == (1, {"lost"})


@pytest.mark.parametrize("name", [TRADES, QUOTES])
def test_lost_tail_is_found_if_it_was_sent_to_somebody(name: str) -> None:
    ledgers = healthy()
    ticks = [entry.message for entry in ledgers.published[name]]
    cut = ledgers_of(ledgers.sent, {**ledgers.published, name: stream(*ticks[:-2])})
    assert checked(cut).lost == 2
    cut.sent = [replace(line, sent=line.id <= 28) for line in cut.sent]
    assert checked(cut).lost == 0, (
        "sent to nobody, and nothing came after it that could have revealed the loss"
    )


def test_gap_that_reports_too_few_ticks_is_found() -> None:
    ledgers = healthy()
    ticks = [entry.message for entry in ledgers.published[TRADES]]
    result = checked(
        ledgers_of(ledgers.sent, {**ledgers.published, TRADES: stream(*ticks[:9], hole(10, 12), *ticks[14:])})
    )
    assert (result.lost, result.reported) == (2, 3)


def test_gap_in_another_place_or_time_does_not_cover_quotes() -> None:
    ledgers = healthy()
    ticks = [entry.message for entry in ledgers.published[QUOTES]]
    late = stream(*ticks[:9], *ticks[14:20], quote_hole(10, 14), *ticks[20:])
    assert checked(ledgers_of(ledgers.sent, {**ledgers.published, QUOTES: late})).lost == 5
    elsewhen = stream(*ticks[:9], quote_hole(300, 301), *ticks[14:])
    assert kinds(ledgers_of(ledgers.sent, {**ledgers.published, QUOTES: elsewhen})) == {"mistimed"}


@pytest.mark.parametrize("name", [TRADES, QUOTES])
def test_doubled_tick_is_found(name: str) -> None:
    ledgers = healthy()
    ticks = [entry.message for entry in ledgers.published[name]]
    result = checked(
        ledgers_of(ledgers.sent, {**ledgers.published, name: stream(*ticks[:7], ticks[6], *ticks[7:])})
    )
    assert result.doubled == 1
    assert "doubled" in {verdict.kind for verdict in result.verdicts}


def test_repeat_by_the_vendor_is_not_a_double() -> None:
    ledgers = healthy()
    again = sent(7, "trade", fault="duplicate")
    assert checked(replace(ledgers, sent=[*ledgers.sent[:14], again, *ledgers.sent[14:]])).verdicts == []


def test_tick_that_was_never_sent_is_found() -> None:
    ledgers = healthy()
    ticks = [entry.message for entry in ledgers.published[TRADES]]
    assert "invented" in kinds(
        ledgers_of(ledgers.sent, {**ledgers.published, TRADES: stream(*ticks, trade(99))})
    )
    wrong = [
        replace(line, values=("1", "2", "buy")) if line.kind == "trade" and line.id == 5 else line
        for line in ledgers.sent
    ]
    assert kinds(replace(ledgers, sent=wrong)) == {"invented", "lost"}
    assert "invented" in kinds(
        ledgers_of(ledgers.sent, {**ledgers.published, QUOTES: stream(*map(quote, range(1, 31)), quote(99))})
    )


def test_late_tick_is_accepted_only_with_its_repaired_gap() -> None:
    ledgers = healthy()
    ticks = [entry.message for entry in ledgers.published[TRADES]]
    assert isinstance(ticks[10], Trade)
    late = msgspec.structs.replace(ticks[9], flags=int(Flag.LATE), ts_recv=ticks[10].ts_recv + 1)
    lines = [line for line in ledgers.sent if (line.kind, line.id) != ("trade", 10)]
    lines.insert(20, sent(10, "trade", n=23))
    lines = [replace(line, n=number) for number, line in enumerate(lines)]
    for repaired, found in (([hole(10, 10, repaired=True)], set()), ([], {"contradicted"})):
        entries = stream(
            *ticks[:9], hole(10, 10, kind=GapKind.SEQUENCE), ticks[10], late, *repaired, *ticks[11:]
        )
        assert kinds(ledgers_of(lines, {**ledgers.published, TRADES: entries})) == found


def test_hole_reported_twice_is_found() -> None:
    ledgers = healthy(missing=range(10, 15))
    ticks = [entry.message for entry in ledgers.published[TRADES]]
    assert kinds(
        ledgers_of(
            ledgers.sent, {**ledgers.published, TRADES: stream(*ticks[:10], hole(12, 14), *ticks[10:])}
        )
    ) == {"contradicted"}


def _swapped(entries: list[Entry]) -> list[Entry]:
    return [
        *entries[:5],
        replace(entries[5], message=entries[6].message),
        replace(entries[6], message=entries[5].message),
        *entries[7:],
    ]


def _with_counter_jump(entries: list[Entry]) -> list[Entry]:
    return [
        *entries[:5],
        *(replace(entry, id=StreamId(entry.id.ms, entry.id.seq + 1)) for entry in entries[5:]),
    ]


def _with_earlier_time(entries: list[Entry]) -> list[Entry]:
    return [
        *entries[:5],
        replace(entries[5], id=StreamId(entries[5].id.ms - 1000, entries[5].id.seq)),
        *entries[6:],
    ]


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (_swapped, "order"),
        (_swapped, "epoch"),
        (_with_counter_jump, "counter"),
        (_with_earlier_time, "order"),
    ],
)
def test_stream_out_of_order_is_found(damage: Callable[[list[Entry]], list[Entry]], kind: str) -> None:
    ledgers = healthy()
    assert kind in kinds(
        ledgers_of(ledgers.sent, {**ledgers.published, TRADES: damage(ledgers.published[TRADES])})
    )


@pytest.mark.parametrize("name", [TRADES, QUOTES, BARS])
def test_app_ledger_that_differs_from_the_bus_is_found(name: str) -> None:
    place = next(at for at, row in enumerate(healthy().delivered) if row[0] == name) + 1
    for change, found in (
        (lambda rows: rows[:place] + rows[place + 1 :], "app"),
        (lambda rows: rows[:place] + rows[place : place + 1] + rows[place:], "doubled"),
        (lambda rows: [*rows[:place], [*rows[place][:3], 1], *rows[place + 1 :]], "app"),
    ):
        ledgers = healthy()
        ledgers.delivered = change(ledgers.delivered)
        assert found in kinds(ledgers)
    ledgers = healthy()
    ledgers.delivered[place] = [name, ledgers.delivered[place - 1][1], "lost", 1]
    assert kinds(ledgers) == set(), "the library reported the loss"


@pytest.mark.parametrize("who", ["remote", "raw"])
@pytest.mark.parametrize("name", [TRADES, QUOTES, BARS])
def test_ledger_of_a_client_of_the_relays_that_differs_from_the_bus_is_found(name: str, who: str) -> None:
    ledgers = healthy()
    rows = ledgers.delivered
    place = next(at for at, row in enumerate(rows) if row[0] == name) + 1
    ledgers.relayed = {who: list(rows)}
    assert kinds(ledgers) == set()
    ledgers.relayed = {who: rows[:place] + rows[place + 1 :]}
    assert kinds(ledgers) == {who}
    ledgers.relayed = {who: rows[:place] + rows[place : place + 1] + rows[place:]}
    assert "doubled" in kinds(ledgers)


@pytest.mark.parametrize("name", [TRADES, QUOTES, BARS])
def test_files_that_differ_from_the_bus_are_found(name: str) -> None:
    place = next(at for at, row in enumerate(healthy().recorded or ()) if row[0] == name) + 1
    for change, found in (
        (lambda rows: rows[:place] + rows[place + 1 :], "recorder"),
        (lambda rows: [*rows, (name, 1, 999, 1, rows[place][4])], "recorder"),
        (lambda rows: [*rows, rows[place]], "doubled"),
        (
            lambda rows: [
                *rows[:place],
                (*rows[place][:4], (*rows[place][4][:3], "77", *rows[place][4][4:])),
                *rows[place + 1 :],
            ],
            "recorder",
        ),
        (lambda rows: [(*row[:3], 2, row[4]) if at < place else row for at, row in enumerate(rows)], "epoch"),
    ):
        ledgers = healthy()
        ledgers.recorded = change(ledgers.recorded)
        assert kinds(ledgers) == {found}


def test_wrong_counter_is_found() -> None:
    for metric, wrong in zip(METRICS, ({"disconnect": 3.0}, {"": 1.0}, {"": 4.0}), strict=True):
        ledgers = healthy(missing=range(10, 15))
        assert kinds(ledgers) == set()
        ledgers.metrics[metric] = wrong
        assert kinds(ledgers) == {"metrics"}
    ledgers = healthy(missing=range(10, 15))
    ledgers.heads[TRADES].gaps["disconnect"] = 2
    assert kinds(ledgers) == {"metrics"}


def test_bar_that_differs_is_found() -> None:
    ledgers = healthy()
    bars = ledgers.published[BARS]
    for damaged in (
        bars[:-1],
        [*bars, bars[-1]],
        [replace(bars[0], message=bars[1].message), *bars[1:]],
    ):
        other = healthy()
        other.published[BARS] = damaged
        assert "bars" in kinds(other)


# what an attacker planted


def with_trade(planted: Planted, *changes: Trade | Gap) -> set[str]:
    """Return the kinds of verdicts on a run whose trades end with these."""
    ledgers = healthy()
    ticks = [entry.message for entry in ledgers.published[TRADES]]
    changed = ledgers_of(ledgers.sent, {**ledgers.published, TRADES: stream(*ticks[:-1], *changes)})
    changed.planted = {TRADES: planted}
    return {verdict.kind for verdict in checked(changed).verdicts if verdict.kind != "bars"}


def test_planted_trade_may_be_stored_once() -> None:
    last = trade(30)
    foreign = msgspec.structs.replace(last, trade_id="77", price_text="1", ts_recv=last.ts_recv - 1)
    planted = Planted({(77, last.ts_event // MILLISECOND): ("1", "2", "buy")})
    assert with_trade(planted, foreign, last) == set()
    assert with_trade(planted, last) == set()
    assert "invented" in with_trade(Planted(), foreign, last)
    assert "invented" in with_trade(planted, msgspec.structs.replace(foreign, size_text="9"), last)
    again = msgspec.structs.replace(foreign, ts_recv=last.ts_recv + 1)
    assert "doubled" in with_trade(planted, foreign, last, again)


def test_trade_with_the_id_of_another_one_must_be_stored_flagged_and_once() -> None:
    first, last = trade(29), trade(30)
    other = msgspec.structs.replace(
        first, price_text="1", flags=int(Flag.DOUBTFUL_ID), ts_event=first.ts_event + 7 * MILLISECOND
    )
    key = (29, other.ts_event // MILLISECOND)
    planted = Planted({key: ("1", "2", "buy")}, {key: 29})
    between = msgspec.structs.replace(other, ts_recv=first.ts_recv + 1)
    assert with_trade(planted, between, last) == set()
    assert with_trade(planted, last) == {"lost"}
    assert with_trade(planted, hole(30, 30)) == set(), "cut off: nobody knows"
    assert with_trade(planted, msgspec.structs.replace(between, flags=0), last) == {"contradicted"}
    again = msgspec.structs.replace(between, ts_recv=last.ts_recv + 1)
    assert with_trade(planted, between, last, again) == {"doubled"}
    marked = msgspec.structs.replace(last, flags=int(Flag.DOUBTFUL_ID))
    assert with_trade(Planted(), marked) == {"contradicted"}


def test_trade_without_a_time_must_have_that_of_its_receipt() -> None:
    last, planted = trade(30), Planted(timeless={30})
    received = msgspec.structs.replace(last, ts_event=last.ts_recv, flags=Flag.BAD_TIME)
    assert with_trade(planted, received) == set()
    assert with_trade(planted, msgspec.structs.replace(last, ts_event=0)) == {"mistimed"}
    assert "invented" in with_trade(Planted(), msgspec.structs.replace(last, ts_event=0))


def test_hole_before_an_id_far_ahead_must_be_withdrawn() -> None:
    last = trade(30)
    far = msgspec.structs.replace(last, trade_id="9007199254740991", ts_recv=last.ts_recv + 1)
    planted = Planted({(9007199254740991, last.ts_event // MILLISECOND): ("130.5", "2", "buy")})
    count = 9007199254740960
    false_hole = msgspec.structs.replace(hole(31, 31), to_id="9007199254740990", count=count)
    withdrawn = msgspec.structs.replace(false_hole, kind=GapKind.VOID, repaired=True)
    ledgers = healthy()
    ticks = [entry.message for entry in ledgers.published[TRADES]]
    changed = ledgers_of(ledgers.sent, {**ledgers.published, TRADES: stream(*ticks, false_hole, far)})
    changed.planted = {TRADES: planted}
    assert "contradicted" in kinds(changed)
    changed = ledgers_of(
        ledgers.sent, {**ledgers.published, TRADES: stream(*ticks, false_hole, far, withdrawn)}
    )
    changed.planted = {TRADES: planted}
    assert "contradicted" not in kinds(changed)
