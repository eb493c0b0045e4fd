"""Which topics the gateway is subscribed to, and why: the fixed part, what is wanted, what lingers. Pure.

States, as other programs see them:

* `pending`: it is wanted, and on its way: its head is read and stored, then the vendor is asked.
* `active`: the vendor acknowledged it.
* `lingering`: nobody wants it any more. It goes on for a while, unless another topic needs its place.
* `refused`: by the vendor, in whose words the reason is, and tried again later; by the operator's rules; or
  for lack of room under a cap, until there is room.

Times are ms since the epoch.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.vendors.feed import Cap
from tickbus.protocol.wants import State, SubscriptionState, Topic

RETRY_MS = 600_000
"""What the vendor refused is tried again after this time, if it is still wanted."""
_REFUSALS = 100_000
"""Refusals of the vendor that are remembered; what is beyond is asked for again sooner."""
_LATE_MS = 10_000
"""After this time without an answer of the vendor a pending topic says so."""
_NEVER = 1 << 62
_UNANSWERED = "the vendor has not answered yet"


@dataclass(slots=True)
class _Row:
    topic: Topic
    fixed: bool
    state: State
    since: int
    reason: str = ""
    wanted: int = 0
    """Since when somebody wants it; 0: nobody does, as far as is known."""
    opened: bool = False
    """Whether its stream can take ticks: only then the vendor is asked for them."""
    placed: bool = False
    """Whether it has a place under the cap."""
    retry_at: int = 0
    """When to try again what was refused; 0: once there is room."""

    @property
    def age(self) -> tuple[int, Topic]:
        return self.wanted or self.since, self.topic


class SubscriptionTable:
    """Decides what to subscribe to. The caller acts on it: it opens streams (`to_open`, `open`), ends them
    (`take_ended`), and stores states (`take_changes`)."""

    def __init__(
        self,
        fixed: Iterable[Topic],
        cap: Cap | None,
        linger_ms: int,
        clock: Callable[[], int] | None = None,
    ) -> None:
        """fixed: topics that are always subscribed to. cap: None: there is none.

        clock: returns the time; None: it is that of the last look.
        """
        self.fixed = tuple(dict.fromkeys(fixed))
        self.target: Sequence[Topic] = ()
        """What to subscribe to: the fixed part, then the others by age."""
        self._cap = cap
        self._linger = linger_ms
        self._clock = clock
        self.changed: Callable[[], None] = lambda: None
        """Called when `target` has changed."""
        self._now = 0
        self._rows: dict[Topic, _Row] = {}
        self._stored: dict[Topic, SubscriptionState] = {}
        self._touched: set[Topic] = set()
        self._ended: list[Topic] = []
        self._refusals: dict[Topic, tuple[int, str]] = {}
        """What the vendor refused lately: when to try again, and its words. Also of topics that nobody wants
        any more: a holder that comes and goes does not make us ask again."""
        self._last: tuple[Mapping[Topic, int], Mapping[Topic, str], bool] | None = None
        self._due = 0
        """When something may change by the clock alone."""
        for topic in self.fixed:
            self._rows[topic] = _Row(topic, True, "pending", 0, placed=True)

    def restore(
        self, stored: Mapping[Topic, SubscriptionState], now: int, wanted: Collection[Topic] = ()
    ) -> None:
        """Continue from what an earlier gateway stored: what it was subscribed to stays so, until it is known
        who wants it. What only its options asked for does not, unless it is in `wanted`."""
        self._now = now
        self._stored = dict(stored)
        for topic, before in stored.items():
            row = self._rows.get(topic)
            if row is not None:
                if before.state == "active":
                    row.state, row.since = "active", before.since
            elif before.state in ("active", "lingering") and (not before.fixed or topic in wanted):
                since = before.since if before.state == "active" else 0
                self._rows[topic] = _Row(topic, False, before.state, before.since, wanted=since, placed=True)
        for row in self._rows.values():
            row.since = row.since or now
        self._touched.update(stored, self._rows)
        self._place()

    def update(
        self, wanted: Mapping[Topic, int], rejected: Mapping[Topic, str], settled: bool, now: int
    ) -> None:
        """Take over what is wanted now, and since when (ms), and what may not be wanted, and why.

        settled: whether what is not in `wanted` is really not wanted: the wants could be read long enough.
        """
        self._now = now
        if now < self._due and (wanted, rejected, settled) == self._last:
            return
        self._last = wanted, rejected, settled
        for topic in (*wanted, *rejected):
            if topic not in self._rows:
                self._rows[topic] = self._new_row(topic)
                self._touched.add(topic)
        for row in list(self._rows.values()):
            if row.fixed:
                self._retry(row)
            elif row.topic in wanted:
                if row.state == "lingering":
                    self._set(row, "active")
                elif row.state == "refused" and not row.wanted and row.topic not in self._refusals:
                    row.retry_at = 0  # it was not allowed to whoever wanted it before
                row.wanted = wanted[row.topic] or now
                self._retry(row)
            elif settled or (row.topic in rejected and not row.opened):
                row.wanted = 0
                self._unwanted(row, rejected.get(row.topic))
        self._place()
        for row in self._rows.values():
            late = row.state == "pending" and row.opened and now - row.since > _LATE_MS
            if late and not row.reason:
                self._set(row, "pending", _UNANSWERED)
        self._refusals = {topic: until for topic, until in self._refusals.items() if until[0] > now}
        self._due = min(map(self._due_of, self._rows.values()), default=_NEVER)

    def _due_of(self, row: _Row) -> int:
        """Return when the clock alone may change a row."""
        if row.state == "lingering":
            return row.since + self._linger
        if row.state == "refused":
            return row.retry_at or _NEVER
        return row.since + _LATE_MS + 1 if row.state == "pending" and not row.reason else _NEVER

    def _new_row(self, topic: Topic) -> _Row:
        retry_at, reason = self._refusals.get(topic, (0, ""))
        state: State = "refused" if retry_at > self._now else "pending"
        return _Row(topic, False, state, self._now, reason, retry_at=retry_at)

    def _retry(self, row: _Row) -> None:
        if row.state == "refused" and 0 < row.retry_at <= self._now:
            row.retry_at = 0
            self._set(row, "pending")

    def _unwanted(self, row: _Row, rejected: str | None) -> None:
        if row.state == "active" and self._linger:
            self._set(row, "lingering")
        elif row.state == "lingering" and self._now - row.since < self._linger:
            return
        elif rejected is None or row.opened:
            self._end(row)
        else:
            row.placed, row.retry_at = False, self._now + RETRY_MS
            self._set(row, "refused", rejected)

    def _place(self) -> None:
        """Give out the places under the cap, and make the target."""
        rows = [row for row in self._rows.values() if not row.fixed and not row.retry_at]
        held = sorted(
            (row for row in rows if row.placed and row.state != "lingering"), key=lambda row: row.age
        )
        new = sorted((row for row in rows if not row.placed and row.wanted), key=lambda row: row.age)
        lingering = sorted((row for row in rows if row.state == "lingering"), key=lambda row: -row.since)
        room = _Room(self._cap)
        fixed = [self._rows[topic] for topic in self.fixed]
        for row in fixed:
            room.take(row.topic)
        placed = []
        for row in (*held, *new, *lingering):
            if room.take(row.topic):
                if not row.placed:
                    row.placed = True
                    self._set(row, "pending")
                placed.append(row)
            elif row.state == "lingering":
                self._end(row)
            else:
                if row.opened:
                    self._ended.append(row.topic)
                row.placed = row.opened = False
                self._set(row, "refused", room.reason)
        asked = [row.topic for row in (*fixed, *placed) if row.opened and not row.retry_at]
        if asked != self.target:
            self.target = asked
            self.changed()

    def to_open(self) -> list[Topic]:
        """Return the topics whose streams are to be made ready, the fixed part first."""
        waiting = [row for row in self._rows.values() if row.placed and not row.opened and not row.retry_at]
        return [row.topic for row in sorted(waiting, key=lambda row: (not row.fixed, row.age))]

    def open(self, topics: Iterable[Topic]) -> None:
        """The streams of these are ready."""
        for topic in topics:
            if (row := self._rows.get(topic)) is not None and row.placed:
                row.opened = True
            else:
                self._ended.append(topic)
        self._place()

    def acknowledge(self, topics: Sequence[Topic]) -> None:
        """The vendor acknowledged these."""
        self._look_at_clock()
        for topic in topics:
            if (row := self._rows.get(topic)) is not None and (row.state == "pending" or row.reason):
                self._set(row, "active" if row.wanted or row.fixed else "lingering")

    def refuse(self, topics: Sequence[Topic], reason: str) -> None:
        """These cannot be subscribed to; they are tried again after some time."""
        self._look_at_clock()
        for topic in topics:
            if (row := self._rows.get(topic)) is not None:
                if row.opened:
                    self._ended.append(topic)
                row.opened, row.placed, row.retry_at = False, row.fixed, self._now + RETRY_MS
                if len(self._refusals) < _REFUSALS:
                    self._refusals[topic] = row.retry_at, reason
                self._set(row, "refused", reason)
        self._place()

    def _look_at_clock(self) -> None:
        if self._clock is not None:
            self._now = max(self._now, self._clock())

    def take_ended(self) -> list[Topic]:
        """Return the topics whose streams end now, once each."""
        ended = [topic for topic in dict.fromkeys(self._ended) if not self._is_open(topic)]
        self._ended = []
        return ended

    def take_changes(self) -> dict[Topic, SubscriptionState | None]:
        """Return the states to store since the last call; None: to be removed."""
        changes: dict[Topic, SubscriptionState | None] = {}
        for topic in self._touched:
            row = self._rows.get(topic)
            state = None if row is None else SubscriptionState(row.state, row.since, row.reason, row.fixed)
            if state != self._stored.get(topic):
                changes[topic] = state
                if state is None:
                    self._stored.pop(topic, None)
                else:
                    self._stored[topic] = state
        self._touched = set()
        return changes

    def store_again(self) -> None:
        """Redis lost what was stored."""
        self._stored = {}
        self._touched = set(self._rows)

    def counts(self) -> dict[str, int]:
        """Return the number of topics by state."""
        counts: dict[str, int] = {}
        for row in self._rows.values():
            counts[row.state] = counts.get(row.state, 0) + 1
        return counts

    def __contains__(self, topic: Topic) -> bool:
        return topic in self._rows

    def _is_open(self, topic: Topic) -> bool:
        row = self._rows.get(topic)
        return row is not None and row.opened

    def _set(self, row: _Row, state: State, reason: str = "") -> None:
        if (state, reason) != (row.state, row.reason):
            if state != row.state:
                row.since = self._now
            self._due = 0  # look at it at the next update
            row.state, row.reason = state, reason
            self._touched.add(row.topic)

    def _end(self, row: _Row) -> None:
        if row.opened:
            self._ended.append(row.topic)
        del self._rows[row.topic]
        self._touched.add(row.topic)


class _Room:
    """Places under a cap."""

    def __init__(self, cap: Cap | None) -> None:
        self._cap = cap
        self._taken: dict[str, int] = {}

    def take(self, topic: Topic) -> bool:
        """Take a place. Return whether there is one."""
        if self._cap is None:
            return True
        kind = topic.kind if self._cap.what == "symbols" else ""
        taken = self._taken.get(kind, 0)
        if taken >= self._cap.most:
            return False
        self._taken[kind] = taken + 1
        return True

    @property
    def reason(self) -> str:
        return f"cap of {self._cap.most} {self._cap.what} reached" if self._cap is not None else ""
