"""Which topics have a place, in which state, in what order: the fixed part, what is wanted, what lingers."""

from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.subscriptions.table import RETRY_MS, SubscriptionTable
from services.vendors.feed import Cap
from tickbus.protocol.wants import SubscriptionState, Topic

T0 = 1_700_000_000_000
LINGER = 60_000


def topic(symbol: str) -> Topic:
    return Topic("trade", symbol)


A, B, C, D = map(topic, "ABCD")
FIXED = topic("FIXED")


class Gateway:
    """Does what a table says, as the keeper does, and looks at everything that it said."""

    def __init__(
        self,
        cap: Cap | None = None,
        linger: int = LINGER,
        stored: Mapping[Topic, SubscriptionState] | None = None,
    ) -> None:
        self.table = SubscriptionTable([FIXED], cap, linger)
        self.now = T0
        self.open: set[Topic] = set()
        self.states: dict[Topic, SubscriptionState] = {}
        self.ended: list[Topic] = []
        self.table.restore(stored or {}, self.now)
        self.states = dict(stored or {})
        self._follow()

    def want(
        self,
        *topics: Topic,
        after: int = 0,
        settled: bool = True,
        rejected: Mapping[Topic, str] | None = None,
    ) -> "Gateway":
        self.now += after
        since = {one: self.table._rows[one].wanted if one in self.table else self.now for one in topics}
        self.table.update(since, rejected or {}, settled, self.now)
        self._follow()
        return self

    def _follow(self) -> None:
        self._end()
        opening = self.table.to_open()
        assert not self.open & set(opening)
        self.open |= set(opening)
        self.table.open(opening)
        self._end()
        for one, state in self.table.take_changes().items():
            if state is None:
                del self.states[one]
            else:
                self.states[one] = state
        assert set(self.table.target) <= self.open

    def _end(self) -> None:
        for one in self.table.take_ended():
            self.open.discard(one)
            self.ended.append(one)

    def acknowledge(self) -> "Gateway":
        self.table.acknowledge(self.table.target)
        self._follow()
        return self

    def refuse(self, one: Topic, why: str) -> "Gateway":
        self.table.refuse([one], why)
        self._follow()
        return self

    @property
    def said(self) -> dict[Topic, tuple[str, str]]:
        return {one: (state.state, state.reason) for one, state in self.states.items()}

    @property
    def target(self) -> list[Topic]:
        return list(self.table.target)


def test_want_becomes_active_lingers_and_ends() -> None:
    one = Gateway()
    one.want(A)
    assert one.said == {FIXED: ("pending", ""), A: ("pending", "")}
    one.acknowledge()
    assert one.said == {FIXED: ("active", ""), A: ("active", "")}
    one.want(after=10)
    assert (one.said[A], one.states[A].since) == (("lingering", ""), one.now)
    one.want(after=LINGER - 1)
    assert one.target == [FIXED, A]
    one.want(after=1)
    assert (one.target, one.said, one.ended) == ([FIXED], {FIXED: ("active", "")}, [A])


def test_lingering_topic_that_is_wanted_again_never_left() -> None:
    one = Gateway().want(A).acknowledge().want().want(A, after=5)
    assert (one.said[A], one.ended, one.target) == (("active", ""), [], [FIXED, A])


def test_nothing_ends_while_it_is_not_known_what_is_wanted() -> None:
    one = Gateway().want(A).acknowledge()
    one.want(after=10 * LINGER, settled=False)
    assert (one.said[A], one.target) == (("active", ""), [FIXED, A])


def test_what_an_earlier_gateway_had_stays_until_it_is_known_what_is_wanted() -> None:
    stored = {
        A: SubscriptionState("active", T0 - 5),
        B: SubscriptionState("lingering", T0 - 900),
        C: SubscriptionState("refused", T0 - 5, "no"),
        D: SubscriptionState("active", T0 - 5, fixed=True),
    }
    one = Gateway(linger=1000, stored=stored)
    assert (one.target, set(one.said)) == ([FIXED, A, B], {FIXED, A, B})
    one.want(after=500, settled=False)
    assert one.target == [FIXED, A, B]
    one.want(A)
    assert (one.target, one.said[A][0]) == ([FIXED, A], "active")  # its linger went on from before


def test_beyond_the_cap_the_youngest_want_is_refused_by_name_until_there_is_room() -> None:
    one = Gateway(Cap(3, "symbols"))
    one.want(A).want(A, B, after=1).acknowledge()
    one.want(A, B, C, after=1)
    assert (one.said[C], one.target) == (("refused", "cap of 3 symbols reached"), [FIXED, A, B])
    one.want(A, C, after=1)
    assert (one.target, one.ended, one.said[C]) == ([FIXED, A, C], [B], ("pending", ""))
    assert B not in one.states


def test_lingering_topics_give_way_the_longest_lingering_first() -> None:
    one = Gateway(Cap(3, "symbols")).want(A, B).acknowledge().want(B, after=1).want(after=1)
    one.want(C, after=1)
    assert (one.ended, one.target) == ([A], [FIXED, C, B])


def test_symbols_are_capped_by_kind_and_streams_together() -> None:
    quote = Topic("quote", "A")
    assert Gateway(Cap(2, "symbols")).want(A, quote).target == [FIXED, quote, A]
    assert len(Gateway(Cap(2, "streams")).want(A, quote).target) == 2


def test_what_the_vendor_refuses_is_tried_again_later_also_after_it_was_not_wanted() -> None:
    one = Gateway().want(A, B).acknowledge().refuse(A, "600 code invalid")
    assert (one.said[A], one.target, one.ended) == (("refused", "600 code invalid"), [FIXED, B], [A])
    one.want(B, after=10).want(A, B, after=10)
    assert (one.said[A], one.target) == (("refused", "600 code invalid"), [FIXED, B])
    one.want(A, B, after=RETRY_MS)
    assert (one.said[A], one.target) == (("pending", ""), [FIXED, B, A])


def test_active_topic_that_the_vendor_refuses_after_a_reconnect_is_tried_again_by_the_clock_alone() -> None:
    one = Gateway().want(A).acknowledge().want(A, after=60_000).want(A, after=60_000)
    one.refuse(A, "604 code unauthorized")
    one.want(A, after=RETRY_MS - 1)
    assert one.said[A] == ("refused", "604 code unauthorized")
    one.want(A, after=1)
    assert (one.said[A], one.target) == (("pending", ""), [FIXED, A])


def test_what_may_not_be_wanted_says_why_until_somebody_wants_it_who_may() -> None:
    one = Gateway().want(rejected={A: "not allowed"}, settled=False)
    assert (one.said[A], one.target) == (("refused", "not allowed"), [FIXED])
    one.want(A)
    assert (one.said[A], one.target) == (("pending", ""), [FIXED, A])
    one.want()
    assert A not in one.said


def test_states_are_stored_again_when_redis_lost_them() -> None:
    one = Gateway().want(A).acknowledge()
    one.table.store_again()
    assert one.table.take_changes() == one.states
    assert one.table.take_changes() == {}


symbols = st.sets(st.sampled_from([A, B, C, D]))


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(st.tuples(symbols, st.booleans(), st.integers(0, 2 * LINGER), st.booleans()), max_size=12),
    cap=st.none() | st.integers(1, 4).map(lambda most: Cap(most, "symbols")),
    refused=st.sets(st.sampled_from([A, B])),
)
def test_whatever_happens_the_cap_holds_and_what_is_wanted_has_a_state(
    steps: list[tuple[set[Topic], bool, int, bool]], cap: Cap | None, refused: set[Topic]
) -> None:
    one = Gateway(cap)
    for wanted, settled, after, acknowledges in steps:
        one.want(*wanted, after=after, settled=settled)
        assert one.target[0] == FIXED and len(set(one.target)) == len(one.target)
        assert len(one.target) <= (cap.most if cap else 5)
        assert wanted <= one.states.keys()
        assert one.open == set(one.target)
        assert {state for state, _ in one.said.values()} <= {"active", "pending", "refused", "lingering"}
        for bad in refused & set(one.target):
            one.refuse(bad, "no")
        if acknowledges:
            one.acknowledge()
            assert {one.said[each][0] for each in one.target} <= {"active", "lingering"}
    one.want(after=1).want(after=2 * LINGER)
    assert (one.target, set(one.states)) == ([FIXED], {FIXED})
