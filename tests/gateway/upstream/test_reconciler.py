"""Whatever is wanted in whichever order, and whatever the vendor refuses or leaves unanswered: in the end it
has what is wanted, without those that it refuses, and what it had is never given up meanwhile."""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.gateway.upstream.reconciler import ANSWER_SECONDS, Reconciler
from services.vendors.feed import Feed, FeedSetup, Mapper, Refused, Request, Topic
from services.vendors.symbols import SymbolMap
from tickbus.units import SECOND, Duration

SYMBOLS = [f"S{number}" for number in range(12)]
FIXED = [Topic("trade", "S0"), Topic("trade", "S1")]
OTHERS = [Topic("trade", symbol) for symbol in SYMBOLS[2:]]


class Protocol(Feed):
    """Requests are objects, not frames: the vendor below reads these."""

    default_url = "ws://127.0.0.1:1"

    def __init__(self, replaces: bool, acks: bool) -> None:
        super().__init__(FeedSetup(SymbolMap(SYMBOLS, str, {}), ("trade",)))
        self.subscribe_replaces = replaces
        self.acks_subscribe = acks

    def change(self, target: Collection[Topic], acknowledged: Collection[Topic]) -> list[Request]:
        before, after = set(acknowledged), set(target)
        adds = tuple(topic for topic in target if topic not in before)
        drops = tuple(topic for topic in acknowledged if topic not in after)
        if self.subscribe_replaces:
            return [self._request("list", tuple(target))._replace(adds=adds, drops=drops)]
        return [
            *([self._request("drop", drops)._replace(drops=drops)] if drops else []),
            *(self._request("add", piece)._replace(adds=piece) for piece in _pieces(adds)),
        ]

    def _request(self, op: str, topics: Sequence[Topic]) -> Request:
        self.requests += 1
        return Request(
            f"{op} {' '.join(topic.symbol for topic in topics)}",
            id=self.requests if self.acks_subscribe else None,
        )

    def mapper(self, tolerance: Duration) -> Mapper:
        raise AssertionError("not needed")


def _pieces(topics: Sequence[Topic]) -> list[tuple[Topic, ...]]:
    """Two streams a frame."""
    return [tuple(topics[first : first + 2]) for first in range(0, len(topics), 2)]


@dataclass
class Vendor:
    """Refuses any subscribe that names a bad symbol, and forgets a list that it refuses."""

    replaces: bool
    bad: frozenset[str]
    forgets: bool
    subscribed: set[str] = field(default_factory=set)

    def receive(self, frame: str) -> bool:
        op, *symbols = frame.split()
        if op != "drop" and self.bad & set(symbols):
            if self.replaces and self.forgets:
                self.subscribed.clear()
            return False
        if op == "list":
            self.subscribed = set(symbols)
        elif op == "add":
            self.subscribed |= set(symbols)
        else:
            self.subscribed -= set(symbols)
        return True


class Talk:
    def __init__(self, replaces: bool, acks: bool, bad: frozenset[str], forgets: bool = True) -> None:
        self.feed = Protocol(replaces, acks)
        self.vendor = Vendor(replaces, bad, forgets)
        self.one = Reconciler(self.feed, FIXED)
        self.refused: set[Topic] = set()
        self.now = 0.0
        self.frames: list[str] = []

    def step(self, target: Sequence[Topic], *, lose: bool = False) -> bool:
        """Send one request and hear the answer, unless it is lost. Return whether there was one to send."""
        wanted = [topic for topic in target if topic not in self.refused]
        request = self.one.next(wanted, self.now)
        if request is None:
            self.now = max(self.now + 0.1, self.one.wait_until)
            return False
        self.frames.append(request.frame)
        held = set(self.one.acknowledged)
        accepted = self.vendor.receive(request.frame)
        self.one.sent(request, self.now)
        if lose and self.feed.acks_subscribe:
            self.now += ANSWER_SECONDS
        elif accepted and self.feed.acks_subscribe:
            self.one.acknowledge(request.id)
        elif not accepted:
            at_fault = self.one.refuse(Refused("bad", False, request=request.id, symbols=True), self.now)
            assert at_fault is not None
            self.refused |= set(at_fault)
        assert held & set(wanted) <= self.one.acknowledged.keys()
        return True

    def finish(self, target: Sequence[Topic]) -> None:
        """Go on until nothing is left to do."""
        quiet = 0
        while quiet < 3:
            quiet = 0 if self.step(target) else quiet + 1
            assert len(self.frames) < 500


targets = st.lists(st.lists(st.sampled_from(OTHERS), unique=True), min_size=1, max_size=8)


@example(
    replaces=False,
    forgets=False,
    steps=[[], [OTHERS[0]], [], [OTHERS[0], OTHERS[6]], []],
    losses=[False, True],
    bad=frozenset(["S8"]),
    patience=1,
)  # an unanswered request had worked, and a later one for the same symbol was refused
@settings(max_examples=400, deadline=None)
@given(
    replaces=st.booleans(), forgets=st.booleans(), steps=targets, losses=st.lists(st.booleans(), max_size=20),
    bad=st.frozensets(st.sampled_from([topic.symbol for topic in OTHERS]), max_size=4),
    patience=st.integers(0, 3),
)  # fmt: skip
def test_vendor_ends_with_what_is_wanted_without_what_it_refuses(
    replaces: bool,
    forgets: bool,
    steps: list[list[Topic]],
    losses: list[bool],
    bad: frozenset[str],
    patience: int,
) -> None:
    talk, lost = Talk(replaces, True, bad, forgets), deque(losses)
    for others in steps:
        for _ in range(patience):
            talk.step([*FIXED, *others], lose=bool(lost and lost.popleft()))
    talk.finish(target := [*FIXED, *steps[-1]])
    expected = {topic.symbol for topic in target} - bad
    assert talk.vendor.subscribed == expected
    assert {topic.symbol for topic in talk.one.acknowledged} == expected
    assert {topic.symbol for topic in talk.refused} <= bad
    assert {topic.symbol for topic in target if topic.symbol in bad} <= {
        topic.symbol for topic in talk.refused
    }


@settings(max_examples=200, deadline=None)
@given(steps=targets, bad=st.frozensets(st.sampled_from([topic.symbol for topic in OTHERS]), max_size=3))
def test_without_acknowledgements_an_error_soon_after_a_request_answers_it(
    steps: list[list[Topic]], bad: frozenset[str]
) -> None:
    talk = Talk(True, False, bad)
    for others in steps:
        talk.step([*FIXED, *others])
    talk.finish(target := [*FIXED, *steps[-1]])
    assert talk.vendor.subscribed == {topic.symbol for topic in target} - bad


def test_one_change_is_one_request_however_much_was_wanted_meanwhile() -> None:
    talk = Talk(True, True, frozenset())
    talk.finish(FIXED)
    request = talk.one.next([*FIXED, OTHERS[0]], 0.0)
    assert request is not None and request.frame == "list S0 S1 S2"
    talk.one.sent(request, 0.0)
    assert talk.one.next([*FIXED, *OTHERS[:2]], 0.0) is None
    assert talk.one.acknowledge(request.id) == [OTHERS[0]]
    following = talk.one.next([*FIXED, *OTHERS[1:4]], 0.0)
    assert following is not None and following.frame == "list S0 S1 S3 S4 S5"


def test_refusal_of_the_fixed_part_is_for_the_caller() -> None:
    talk = Talk(False, True, frozenset(["S1"]))
    request = talk.one.next(FIXED, 0.0)
    assert request is not None
    talk.one.sent(request, 0.0)
    assert talk.one.refuse(Refused("bad", True, request=request.id, symbols=True), 0.0) is None
    assert not talk.one.established


def test_refusal_for_haste_waits_and_keeps_everything() -> None:
    talk = Talk(True, True, frozenset())
    talk.finish(FIXED)
    target = [*FIXED, OTHERS[0]]
    request = talk.one.next(target, 10.0)
    assert request is not None
    talk.one.sent(request, 10.0)
    refused = Refused("too fast", False, Duration(3 * SECOND), request=request.id)
    assert talk.one.refuse(refused, 10.0) == []
    assert list(talk.one.acknowledged) == FIXED
    assert (talk.one.next(target, 12.9), talk.one.wait_until) == (None, 13.0)
    assert talk.one.next(target, 13.0) is not None


def test_refusal_that_answers_nothing_of_ours_is_for_the_caller() -> None:
    talk = Talk(True, True, frozenset())
    assert talk.one.refuse(Refused("go away", True), 0.0) is None
    talk.finish(FIXED)
    assert talk.one.refuse(Refused("go away", True), 100.0) is None


def test_halves_find_one_bad_symbol_in_few_requests() -> None:
    talk = Talk(False, True, frozenset(["S7"]))
    talk.finish([*FIXED, *OTHERS])
    assert talk.refused == {Topic("trade", "S7")}
    assert talk.vendor.subscribed == set(SYMBOLS) - {"S7"}
    assert len(talk.frames) < 20
