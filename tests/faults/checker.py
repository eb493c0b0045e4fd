"""One checker over the ledgers of a run. Pure: ledgers in, verdicts out.

A tick that was sent must be in its stream once, or in a hole that a Gap reports: by id where there are ids,
else by place (the Gap is between the two neighbours of the hole) and by time. The app and the files must have
exactly what is in the streams.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import Any

from support.attacker import LAST_ID

from faults.bars import check_bars
from faults.ledgers import FEED, RECORDER, Entry, Ledgers, Planted, Sent
from tickbus.protocol.messages import Bar, Flag, Gap, GapKind, Message, Quote, Side, Trade
from tickbus.protocol.names import Stream
from tickbus.units import MILLISECOND, SECOND

SLACK = 2 * SECOND
"""How far the times of a Gap may be off where the vendor has no ids: the Gap has receive times, the ledger
send times."""
NOTHING = Planted()
METRICS = ("tickbus_gaps_total", "tickbus_gaps_repaired_total", "tickbus_missing_ticks_total")
RESENT = "tickbus_resent_ticks_total"


@dataclass(frozen=True)
class Verdict:
    kind: str
    """lost, doubled, mistimed (the Gap is in the right place but has other times), order, invented,
    contradicted, counter, epoch, app, remote, raw, recorder, bars, metrics; for the run itself: crashed,
    stuck, memory, harness."""
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.text}"


@dataclass
class Result:
    verdicts: list[Verdict] = field(default_factory=list)
    sent: int = 0
    published: int = 0
    lost: int = 0
    doubled: int = 0
    reported: int = 0
    """Ticks sent that are in no stream, but reported by a Gap."""
    resent: int = 0
    """Entries that Redis acknowledged and lost, and that the gateway sent again."""
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Role -> the most memory that one of its processes had, and its bound."""

    def add(self, kind: str, where: str, text: str) -> None:
        self.verdicts.append(Verdict(kind, where, text))

    def doubles(self, where: str, keys: Iterable[Any]) -> None:
        """Each key may occur once."""
        repeated = {key: count for key, count in Counter(keys).items() if count > 1}
        if repeated:
            self.doubled += sum(repeated.values()) - len(repeated)
            self.add(
                "doubled",
                where,
                f"{len(repeated)} occur more than once, e.g. {next(iter(repeated.items()))}",
            )


def check(ledgers: Ledgers, specs: Sequence[str], grace: int, horizon: int) -> Result:
    result = Result()
    by_stream: dict[str, list[Sent]] = defaultdict(list)
    for tick in ledgers.sent:
        by_stream[Stream(tick.kind, FEED, tick.symbol).name].append(tick)
    for name, entries in ledgers.published.items():
        check_stream(result, name, entries)
    for name, ticks in sorted(by_stream.items()):
        entries = ledgers.published.get(name, [])
        if name.startswith("trade:"):
            check_trades(result, name, ticks, entries, ledgers.planted.get(name, NOTHING))
        else:
            check_quotes(result, name, ticks, entries)
    check_delivered(result, ledgers, "app", ledgers.delivered)
    for name, rows in ledgers.relayed.items():
        check_delivered(result, ledgers, name, rows)
    if ledgers.recorded is not None:
        check_recorded(result, ledgers)
    check_counters(result, ledgers)
    for where, text in check_bars(ledgers.published, specs, grace, horizon, exactly=not ledgers.flushed):
        result.add("bars", where, text)
    return result


def check_stream(result: Result, name: str, entries: list[Entry]) -> None:
    """Check the IDs (counters dense from 1, bus time never decreasing) and strictly increasing receive
    times."""
    seqs = [entry.id.seq for entry in entries]
    if seqs != list(range(1, len(seqs) + 1)):
        jump = next((f"{a} to {b}" for a, b in pairwise([0, *seqs]) if b != a + 1), "")
        result.add("counter", name, f"not dense: from {jump}")
    if any(b.id.ms < a.id.ms for a, b in pairwise(entries)):
        result.add("order", name, "bus time decreases")
    received = [entry.message.ts_recv for entry in entries if isinstance(entry.message, Trade | Quote)]
    if backwards := next((pair for pair in pairwise(received) if pair[1] <= pair[0]), None):
        result.add("epoch", name, f"ts_recv does not increase: {backwards}: two writers?")


def check_trades(
    result: Result, name: str, sent: list[Sent], entries: list[Entry], planted: Planted = NOTHING
) -> None:
    """Check by vendor id. A repeated line counts as the tick that it repeats.

    What an attacker planted may be stored, each once; what it took the time of is known by its id. A trade
    with the id of another one must be stored, flagged, if its neighbours are.
    """
    wanted = {(tick.id, tick.ts_event // MILLISECOND): tick for tick in reversed(sent)}
    by_id = {key[0]: key for key in wanted} if planted.timeless else {}
    foreign: list[tuple[int, int]] = []
    followed: set[int] = set()
    """Ids of stored trades that the next one of the vendor follows in the stream: nothing between was cut."""
    known: set[int] = set()
    before: Sent | None = None
    fallen = _fallen(wanted.values())
    following = {one.n: other.n for one, other in pairwise(sorted(wanted.values(), key=lambda tick: tick.n))}
    result.sent += len(wanted)
    stored: list[tuple[int, int]] = []
    for entry in entries:
        if isinstance(entry.message, Trade):
            key = (int(entry.message.trade_id or -1), entry.message.ts_event // MILLISECOND)
            if key in planted.foreign and _same(_values(entry.message), planted.foreign[key]):
                foreign.append(key)
                if planted.behind.get(key) in known and not entry.message.flags & Flag.DOUBTFUL_ID:
                    result.add(
                        "contradicted", name, f"{entry.id} has the id of another trade: {entry.message}"
                    )
                continue
            if key[0] in planted.timeless and key not in wanted:
                _check_timeless(result, name, entry)
                key = by_id.get(key[0], key)
            tick = wanted.get(key)
            if tick is None or tick.fault == "corrupt":
                result.add("invented", name, f"{entry.id} was never sent: {entry.message}")
            elif not _same(_values(entry.message), tick.values):
                result.add(
                    "invented", name, f"{entry.id} is {_values(entry.message)}, but {tick.values} was sent"
                )
            else:
                stored.append(key)
                known.add(key[0])
                if before is not None and following.get(before.n) == tick.n:
                    followed.add(before.id)
                before = tick
                if entry.message.flags & Flag.DOUBTFUL_ID and not planted.foreign and tick.n not in fallen:
                    result.add("contradicted", name, f"{entry.id} is doubtful, and nothing else had its id")
        elif isinstance(entry.message, Gap):
            before = None
    result.published += len(stored)
    result.doubles(name, stored)
    result.doubles(name, foreign)
    if gone := [key for key, id in planted.behind.items() if id in followed and key not in set(foreign)]:
        result.lost += len(gone)
        result.add("lost", name, f"{len(gone)} trades with the id of another one, e.g. {gone[0]}")
    numbers = [wanted[key].n for key in stored]
    if wrong := next((pair for pair in pairwise(numbers) if pair[1] < pair[0]), None):
        result.add("order", name, f"line {wrong[1]} of the sender's ledger comes after line {wrong[0]}")
    holes = ReportedHoles([entry.message for entry in entries if isinstance(entry.message, Gap)])
    for text in holes.contradictions:
        result.add("contradicted", name, text)
    if max(planted.foreign, default=(0, 0)) > (LAST_ID, 0) and holes.contain(LAST_ID - 1):
        result.add("contradicted", name, f"the hole before the planted id {LAST_ID} is not withdrawn")
    if present := [key for key in stored if holes.contain(key[0])]:
        result.add(
            "contradicted", name, f"{len(present)} stored ticks are reported as missing, e.g. {present[0]}"
        )
    have = set(stored)
    lost = []
    for key, tick in wanted.items():
        if key not in have and _must_be_known(tick, numbers):
            if holes.cover(tick):
                result.reported += 1
            else:
                lost.append(tick)
    _add_lost(result, name, lost)


def _fallen(sent: Iterable[Sent]) -> set[int]:
    """Return the lines whose id is below an earlier one: the vendor's ids began again. The first of them that
    arrives is doubtful until the next one confirms it, and stays so if the connection ends between."""
    highest, fallen = -1, set()
    for tick in sorted(sent, key=lambda tick: tick.n):
        if tick.id < highest:
            fallen.add(tick.n)
        highest = max(highest, tick.id)
    return fallen


def _check_timeless(result: Result, name: str, entry: Entry) -> None:
    """Without a time of the vendor, a trade has that of its receipt, and says so."""
    assert isinstance(entry.message, Trade)
    if entry.message.ts_event != entry.message.ts_recv or not entry.message.flags & Flag.BAD_TIME:
        result.add("mistimed", name, f"{entry.id} came without a time: {entry.message}")


def check_quotes(result: Result, name: str, sent: list[Sent], entries: list[Entry]) -> None:
    """Check by values, in order: quotes have no ids. A hole needs a Gap in its place whose times cover it."""
    sent = [tick for tick in sent if tick.fault not in ("drop", "mute")]
    result.sent += len(sent)
    places: dict[tuple[Decimal | None, ...], list[int]] = defaultdict(list)
    for place, tick in enumerate(sent):
        places[_numbers(tick.values)].append(place)
    last = -1
    first: int | None = None
    gaps: list[Gap] = []
    """Since the last quote."""
    before = 0
    """ts_event of the last quote."""
    for entry in entries:
        if isinstance(entry.message, Gap):
            gaps.append(entry.message)
        elif isinstance(entry.message, Quote):
            found = places.get(_numbers(_values(entry.message)), [])
            at = bisect_right(found, last)
            if at == len(found):
                result.doubled += bool(found)
                result.add(
                    "doubled" if found else "invented",
                    name,
                    f"{entry.id}: {entry.message}; sent on lines {[sent[n].n for n in found]}",
                )
                continue
            if first is not None:
                _check_hole(result, name, sent[last + 1 : found[at]], gaps, before, entry.message.ts_event)
            first = found[at] if first is None else first
            last, gaps, before = found[at], [], entry.message.ts_event
            result.published += 1
    _check_hole(result, name, [tick for tick in sent[last + 1 :] if tick.sent], gaps, before, 1 << 63)


def _check_hole(
    result: Result, name: str, missing: Sequence[Sent], gaps: list[Gap], before: int, after: int
) -> None:
    """`before`, `after`: times of the neighbours. A paused gateway reads late: its ticks, and the holes
    between them, have late times."""
    if not gaps:
        _add_lost(result, name, missing)
        return
    result.reported += len(missing)
    times = [min(max(tick.at, before), after) for tick in missing]
    outside = [at for at in times if not any(gap.from_ts - SLACK <= at <= gap.to_ts + SLACK for gap in gaps)]
    if outside:
        ranges = [f"{gap.kind.name} {gap.from_ts / SECOND:.1f} to {gap.to_ts / SECOND:.1f}" for gap in gaps]
        result.add(
            "mistimed",
            name,
            f"{len(outside)} ticks from {outside[0] / SECOND:.1f} to {outside[-1] / SECOND:.1f} "
            f"are reported as {ranges}",
        )


def _add_lost(result: Result, name: str, lost: Sequence[Sent]) -> None:
    if lost:
        result.lost += len(lost)
        shown = ", ".join(
            f"line {tick.n} (id {tick.id}, {'sent' if tick.sent else 'to nobody'}, fault {tick.fault})"
            for tick in lost[:3]
        )
        result.add("lost", name, f"{len(lost)} ticks: {shown}{', ...' if len(lost) > 3 else ''}")


def _must_be_known(tick: Sent, stored: list[int]) -> bool:
    """All ticks between the first and the last stored one must be; behind the last, those that a
    connection was sent; before the first, none."""
    if not stored:
        return tick.sent
    return stored[0] < tick.n and (tick.n < stored[-1] or tick.sent)


def _numbers(values: Iterable[str | None]) -> tuple[Decimal | None, ...]:
    return tuple(None if value is None else Decimal(value) for value in values)


def _same(found: tuple[str | None, ...], wanted: tuple[str | None, ...]) -> bool:
    """Compare trades: price and size by value, the side as it is."""
    return found == wanted or (_numbers(found[:2]) == _numbers(wanted[:2]) and found[2:] == wanted[2:])


def _values(message: Message) -> tuple[str | None, ...]:
    if isinstance(message, Trade):
        return (
            message.price_text,
            message.size_text,
            None if message.side is Side.UNKNOWN else message.side.name.lower(),
        )
    assert isinstance(message, Quote)
    return message.bid_text, message.bid_size_text, message.ask_text, message.ask_size_text


class ReportedHoles:
    """What the Gaps of a stream report as missing in the end: ranges of ids, less repaired ones, and
    ranges of time without ids."""

    def __init__(self, gaps: Sequence[Gap]) -> None:
        self.contradictions: list[str] = []
        self._ranges: list[tuple[int, int]] = []
        self._times: list[tuple[int, int]] = []
        for gap in gaps:
            if gap.from_id is None or gap.to_id is None:
                self._times.append((gap.from_ts, gap.to_ts))
            elif gap.repaired:
                self._repair(int(gap.from_id), int(gap.to_id))
            else:
                self._add(int(gap.from_id), int(gap.to_id))

    def _add(self, first: int, last: int) -> None:
        if other := next((known for known in self._ranges if known[0] <= last and first <= known[1]), None):
            self.contradictions.append(
                f"ids {first} to {last} are reported as missing, but {other[0]} to {other[1]} already were"
            )
        self._ranges.append((first, last))
        self._ranges.sort()

    def _repair(self, first: int, last: int) -> None:
        holder = next((known for known in self._ranges if known[0] <= first and last <= known[1]), None)
        if holder is None:
            self.contradictions.append(
                f"ids {first} to {last} are reported as repaired, but were not missing"
            )
            return
        self._ranges.remove(holder)
        self._ranges += [
            part for part in ((holder[0], first - 1), (last + 1, holder[1])) if part[0] <= part[1]
        ]
        self._ranges.sort()

    def contain(self, id: int) -> bool:
        at = bisect_left(self._ranges, (id + 1, 0)) - 1
        return at >= 0 and id <= self._ranges[at][1]

    def cover(self, tick: Sent) -> bool:
        # the vendor's clock has whole ms
        return self.contain(tick.id) or any(
            first - MILLISECOND < tick.ts_event < last + MILLISECOND for first, last in self._times
        )


def check_delivered(result: Result, ledgers: Ledgers, who: str, rows: Sequence[list[Any]]) -> None:
    """A reader has every entry of every stream once, in order, with its content, but for reported losses."""
    by_stream: dict[str, list[list[Any]]] = defaultdict(list)
    reported: Counter[str] = Counter()
    for row in rows:
        if row[2] == "lost":
            reported[row[0]] += row[3] or 0
        else:
            by_stream[row[0]].append(row)
    for name, entries in ledgers.published.items():
        got = [(row[1], row[3]) for row in by_stream.get(name, [])]
        crcs = {row[1]: row[3] for row in by_stream.get(name, [])}
        want = [
            (id, crcs.get(id) if entry.crc is None else entry.crc)
            for entry in entries
            for id in [str(entry.id)]
        ]
        if got == want:
            continue
        result.doubles(f"{who}, {name}", [id for id, _ in got])
        missing, extra = (
            [row for row in want if row not in set(got)],
            [row for row in got if row not in set(want)],
        )
        # else: the same entries in the same order, and a report about a stream that was rolled back
        if len(missing) > reported[name] or extra or got != [row for row in want if row in set(got)]:
            result.add(
                who,
                name,
                f"{len(missing)} of {len(want)} entries missing {missing[:2]}, {reported[name]} reported; "
                f"{len(extra)} others {extra[:2]}",
            )
    for name in by_stream.keys() - ledgers.published.keys():
        result.add(who, name, "was delivered, but is not on the bus")


def check_recorded(result: Result, ledgers: Ledgers) -> None:
    """The files have every entry of every stream once, with its values; epochs never decrease."""
    assert ledgers.recorded is not None
    rows = [
        row
        for row in ledgers.recorded
        if not (ledgers.flushed and row[4][0] == "gap" and row[4][-1] == RECORDER)
    ]
    result.doubles("files", [row[:3] for row in rows])
    got = {row[:3]: row[4] for row in rows}
    want = {
        (name, *entry.id): facts(entry.message)
        for name, entries in ledgers.published.items()
        for entry in entries
    }
    for text, keys in (
        ("on the bus but not in the files", want.keys() - got.keys()),
        ("in the files but not on the bus", got.keys() - want.keys()),
    ):
        by_stream = Counter(key[0] for key in keys)
        for name, count in sorted(by_stream.items()):
            result.add(
                "recorder", name, f"{count} entries {text}, e.g. {min(key for key in keys if key[0] == name)}"
            )
    if wrong := next((key for key in want.keys() & got.keys() if want[key] != _plain(got[key])), None):
        result.add(
            "recorder", wrong[0], f"{wrong} is {_plain(got[wrong])} in the files, {want[wrong]} on the bus"
        )
    epochs: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for name, _, seq, epoch, _ in ledgers.recorded:
        epochs[name].append((seq, epoch))
    for name, rows in epochs.items():
        rows.sort()
        if fall := next((pair for pair in pairwise(rows) if pair[1][1] < pair[0][1]), None):
            result.add(
                "epoch",
                name,
                f"entry {fall[1][0]} of epoch {fall[1][1]} comes after one of epoch {fall[0][1]}",
            )


def facts(message: Message) -> tuple[Any, ...]:
    """Return what the files must hold of a message, in the order of their columns."""
    if isinstance(message, Trade):
        return (
            "trade",
            message.trade_id,
            message.price,
            message.size,
            None if message.side is Side.UNKNOWN else message.side.name.lower(),
        )
    if isinstance(message, Quote):
        return "quote", message.bid, message.bid_size, message.ask, message.ask_size
    if isinstance(message, Bar):
        return "bar", str(message.start), str(message.revision), message.close, str(message.trades)
    assert isinstance(message, Gap)
    count = None if message.count is None else str(message.count)
    return (
        "gap",
        message.kind.name.lower(),
        message.from_id,
        message.to_id,
        count,
        str(message.repaired).lower(),
        message.source,
    )


_DECIMALS = {"trade": (2, 3), "quote": (1, 2, 3, 4), "bar": (3,), "gap": ()}


def _plain(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a row of the files with numbers by value: the files pad them with zeros."""
    return tuple(
        Decimal(value) if place in _DECIMALS[row[0]] and value is not None else value
        for place, value in enumerate(row)
    )


def check_counters(result: Result, ledgers: Ledgers) -> None:
    """The heads and the gateway's /metrics count exactly the Gap messages in the streams."""
    total: Counter[str] = Counter()
    repaired = missing = 0
    for name, entries in ledgers.published.items():
        if name.startswith("bar:"):
            continue
        gaps = [entry.message for entry in entries if isinstance(entry.message, Gap)]
        kinds = Counter(gap.kind.name.lower() for gap in gaps if not gap.repaired)
        counted = sum(gap.count or 0 for gap in gaps if not gap.repaired) - sum(
            gap.count or 0 for gap in gaps if gap.repaired
        )
        repairs = sum(gap.repaired for gap in gaps)
        found_again = sum(gap.count or 0 for gap in gaps if gap.repaired and gap.kind is not GapKind.VOID)
        if (head := ledgers.heads.get(name)) and (Counter(head.gaps), head.repaired, head.missing) != (
            kinds,
            repairs,
            counted,
        ):
            result.add(
                "metrics",
                name,
                f"head counts {head.gaps}, {head.repaired} repaired, {head.missing} missing; "
                f"found {dict(kinds)}, {repairs}, {counted}",
            )
        total += kinds
        # the metric counts what was ever missing; it decreases only for ids that never existed
        repaired, missing = repaired + repairs, missing + counted + found_again
    for name, found in zip(METRICS, (dict(total), {"": repaired}, {"": missing}), strict=True):
        shown = {kind: value for kind, value in ledgers.metrics.get(name, {}).items() if value}
        if shown != {kind: float(value) for kind, value in found.items() if value}:
            result.add("metrics", name, f"the gateway reports {shown}, the streams hold {found}")
