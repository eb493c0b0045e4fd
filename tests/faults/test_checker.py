"""The checker must fail: each kind of damage, planted in ledgers in which all was well, is found and named."""

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from faults import factories as made
from faults.checker import METRICS, Result, check
from faults.factories import (
    BARS,
    GRACE,
    HORIZON,
    QUOTES,
    SPEC,
    TRADES,
    books,
    hole,
    quote,
    sent,
    stream,
    trade,
    well,
)
from faults.ledgers import Entry, Ledgers
from tickbus.protocol.messages import Flag, GapKind
from tickbus.protocol.names import StreamId


def checked(ledgers: Ledgers) -> Result:
    return check(ledgers, [SPEC], GRACE, HORIZON)


def kinds(ledgers: Ledgers) -> set[str]:
    return {verdict.kind for verdict in checked(ledgers).verdicts}


def test_all_is_well() -> None:
    result = checked(well())
    assert (result.verdicts, result.sent, result.published, result.lost, result.doubled, result.told) == (
        [],
        60,
        60,
        0,
        0,
        0,
    )


def test_what_a_gap_names_is_not_lost() -> None:
    result = checked(well(missing=range(10, 15)))
    assert (result.verdicts, result.published, result.lost, result.told) == ([], 50, 0, 10)


@pytest.mark.parametrize("name", [TRADES, QUOTES])
def test_a_lost_tick_is_found(name: str) -> None:
    ledgers = well()
    ticks = [entry.message for entry in ledgers.published[name]]
    result = checked(books(ledgers.sent, {**ledgers.published, name: stream(*ticks[:7], *ticks[8:])}))
    assert (result.lost, {verdict.kind for verdict in result.verdicts}) == (1, {"lost"})


@pytest.mark.parametrize("name", [TRADES, QUOTES])
def test_a_lost_tail_is_found_if_somebody_had_been_given_it(name: str) -> None:
    ledgers = well()
    ticks = [entry.message for entry in ledgers.published[name]]
    cut = books(ledgers.sent, {**ledgers.published, name: stream(*ticks[:-2])})
    assert checked(cut).lost == 2
    cut.sent = [replace(line, sent=line.id <= 28) for line in cut.sent]
    assert checked(cut).lost == 0, "sent to nobody, and nothing came after it that could have told"


def test_a_gap_that_names_too_few_is_found() -> None:
    ledgers = well()
    ticks = [entry.message for entry in ledgers.published[TRADES]]
    result = checked(
        books(ledgers.sent, {**ledgers.published, TRADES: stream(*ticks[:9], hole(10, 12), *ticks[14:])})
    )
    assert (result.lost, result.told) == (2, 3)


def test_a_gap_at_another_place_or_time_does_not_cover_quotes() -> None:
    ledgers = well()
    ticks = [entry.message for entry in ledgers.published[QUOTES]]
    late = stream(*ticks[:9], *ticks[14:20], made.quote_hole(10, 14), *ticks[20:])
    assert checked(books(ledgers.sent, {**ledgers.published, QUOTES: late})).lost == 5
    elsewhen = stream(*ticks[:9], made.quote_hole(300, 301), *ticks[14:])
    assert kinds(books(ledgers.sent, {**ledgers.published, QUOTES: elsewhen})) == {"mistimed"}


@pytest.mark.parametrize("name", [TRADES, QUOTES])
def test_a_double_is_found(name: str) -> None:
    ledgers = well()
    ticks = [entry.message for entry in ledgers.published[name]]
    result = checked(
        books(ledgers.sent, {**ledgers.published, name: stream(*ticks[:7], ticks[6], *ticks[7:])})
    )
    assert result.doubled == 1
    assert "doubled" in {verdict.kind for verdict in result.verdicts}


def test_a_repeat_by_the_vendor_is_no_double() -> None:
    ledgers = well()
    again = sent(7, "trade", fault="duplicate")
    assert checked(replace(ledgers, sent=[*ledgers.sent[:14], again, *ledgers.sent[14:]])).verdicts == []


def test_what_was_never_sent_is_found() -> None:
    ledgers = well()
    ticks = [entry.message for entry in ledgers.published[TRADES]]
    assert "invented" in kinds(books(ledgers.sent, {**ledgers.published, TRADES: stream(*ticks, trade(99))}))
    wrong = [
        replace(line, values=("1", "2", "buy")) if line.kind == "trade" and line.id == 5 else line
        for line in ledgers.sent
    ]
    assert kinds(replace(ledgers, sent=wrong)) == {"invented", "lost"}
    assert "invented" in kinds(
        books(ledgers.sent, {**ledgers.published, QUOTES: stream(*map(quote, range(1, 31)), quote(99))})
    )


def test_a_late_tick_that_repairs_its_gap_is_well_and_one_that_does_not_is_found() -> None:
    ledgers = well()
    ticks = [entry.message for entry in ledgers.published[TRADES]]
    late = msgspec.structs.replace(ticks[9], flags=int(Flag.LATE), ts_recv=ticks[10].ts_recv + 1)
    lines = [line for line in ledgers.sent if (line.kind, line.id) != ("trade", 10)]
    lines.insert(20, sent(10, "trade", n=23))
    lines = [replace(line, n=number) for number, line in enumerate(lines)]
    for repaired, found in (([hole(10, 10, repaired=True)], set()), ([], {"contradicted"})):
        entries = stream(
            *ticks[:9], hole(10, 10, kind=GapKind.SEQUENCE), ticks[10], late, *repaired, *ticks[11:]
        )
        assert kinds(books(lines, {**ledgers.published, TRADES: entries})) == found


def test_a_hole_told_twice_is_found() -> None:
    ledgers = well(missing=range(10, 15))
    ticks = [entry.message for entry in ledgers.published[TRADES]]
    assert kinds(
        books(ledgers.sent, {**ledgers.published, TRADES: stream(*ticks[:10], hole(12, 14), *ticks[10:])})
    ) == {"contradicted"}


def _swap(entries: list[Entry]) -> list[Entry]:
    return [
        *entries[:5],
        replace(entries[5], message=entries[6].message),
        replace(entries[6], message=entries[5].message),
        *entries[7:],
    ]


def _hollow(entries: list[Entry]) -> list[Entry]:
    return [
        *entries[:5],
        *(replace(entry, id=StreamId(entry.id.ms, entry.id.seq + 1)) for entry in entries[5:]),
    ]


def _back(entries: list[Entry]) -> list[Entry]:
    return [
        *entries[:5],
        replace(entries[5], id=StreamId(entries[5].id.ms - 1000, entries[5].id.seq)),
        *entries[6:],
    ]


@pytest.mark.parametrize(
    ("damage", "kind"), [(_swap, "order"), (_swap, "epoch"), (_hollow, "counter"), (_back, "order")]
)
def test_a_stream_out_of_order_is_found(damage: Callable[[list[Entry]], list[Entry]], kind: str) -> None:
    ledgers = well()
    assert kind in kinds(
        books(ledgers.sent, {**ledgers.published, TRADES: damage(ledgers.published[TRADES])})
    )


@pytest.mark.parametrize("name", [TRADES, QUOTES, BARS])
def test_an_app_with_another_story_is_found(name: str) -> None:
    place = next(at for at, row in enumerate(well().delivered) if row[0] == name) + 1
    for change, found in (
        (lambda rows: rows[:place] + rows[place + 1 :], "app"),
        (lambda rows: rows[:place] + rows[place : place + 1] + rows[place:], "doubled"),
        (lambda rows: [*rows[:place], [*rows[place][:3], 1], *rows[place + 1 :]], "app"),
    ):
        ledgers = well()
        ledgers.delivered = change(ledgers.delivered)
        assert found in kinds(ledgers)
    told = well()
    told.delivered[place] = [name, told.delivered[place - 1][1], "lost", 1]
    assert kinds(told) == set(), "the library said so"


@pytest.mark.parametrize("name", [TRADES, QUOTES, BARS])
def test_files_that_differ_from_the_bus_are_found(name: str) -> None:
    place = next(at for at, row in enumerate(well().recorded) if row[0] == name) + 1
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
        ledgers = well()
        ledgers.recorded = change(ledgers.recorded)
        assert kinds(ledgers) == {found}


def test_a_wrong_counter_is_found() -> None:
    for metric, wrong in zip(METRICS, ({"disconnect": 3.0}, {"": 1.0}, {"": 4.0}), strict=True):
        ledgers = well(missing=range(10, 15))
        assert kinds(ledgers) == set()
        ledgers.metrics[metric] = wrong
        assert kinds(ledgers) == {"metrics"}
    ledgers = well(missing=range(10, 15))
    ledgers.heads[TRADES].gaps["disconnect"] = 2
    assert kinds(ledgers) == {"metrics"}


def test_a_bar_that_differs_is_found() -> None:
    ledgers = well()
    made_bars = ledgers.published[BARS]
    for damaged in (
        made_bars[:-1],
        [*made_bars, made_bars[-1]],
        [replace(made_bars[0], message=made_bars[1].message), *made_bars[1:]],
    ):
        other = well()
        other.published[BARS] = damaged
        assert "bars" in kinds(other)
