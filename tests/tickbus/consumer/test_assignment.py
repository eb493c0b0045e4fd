"""Who should work which shard, and who counts as alive."""

from hypothesis import given
from hypothesis import strategies as st

from tickbus.consumer.assignment import Plan, Watch, assign, plan

SHARDS = range(64)
MEMBERS = st.sets(st.text("abc:0123", min_size=1, max_size=12), min_size=1, max_size=8)


@given(MEMBERS)
def test_every_shard_has_exactly_one_owner_and_each_member_computes_the_same(members: set[str]) -> None:
    assigned = assign(members, SHARDS)
    assert assigned.keys() == set(SHARDS)
    assert set(assigned.values()) <= members
    assert assign(sorted(members, reverse=True), SHARDS) == assigned


@given(MEMBERS, st.data())
def test_one_that_leaves_moves_only_its_own_shards_and_one_that_joins_only_takes(
    members: set[str], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(members)))
    before, after = assign(members, SHARDS), assign(members - {gone}, SHARDS)
    if members == {gone}:
        assert after == {}
    else:
        assert {shard for shard in SHARDS if before[shard] != after[shard]} == {
            shard for shard in SHARDS if before[shard] == gone
        }


def test_the_hash_is_the_same_in_every_process_and_version() -> None:
    assert assign({"a", "b", "c"}, range(8)) == {
        0: "a",
        1: "a",
        2: "a",
        3: "a",
        4: "c",
        5: "c",
        6: "b",
        7: "c",
    }


def test_shares_are_about_even() -> None:
    members = [f"host:{pid}:{pid:08x}" for pid in range(4)]
    assigned = list(assign(members, range(1000)).values())
    assert all(200 < assigned.count(member) < 300 for member in members)


# who is alive: a heartbeat says until when


def test_one_whose_heartbeat_changes_is_alive_and_one_that_stops_is_not() -> None:
    watch = Watch("me", 3.0)
    for second in range(10):
        watch.see(
            {"me": 0, "a": 3000 + 1000 * second, "b": 3000 + 1000 * min(second, 3)},
            1000 * second,
            float(second),
        )
        # b was last seen to change at 3 s
        assert watch.alive == ({"me", "a", "b"} if second < 6 else {"me", "a"})
        assert watch.free("b") == (second >= 6)
        assert not watch.free("a")


def test_a_new_replica_waits_a_whole_ttl_before_it_calls_anybody_dead() -> None:
    """The heartbeats may have been lost by a failover, or may be old because Redis itself was away."""
    watch = Watch("me", 3.0)
    for second in range(3):
        watch.see({"old": 10}, 1_000_000 + second * 1000, float(second))
        assert watch.alive == {"me"}
        assert not watch.free("old") and not watch.free("never seen")
        assert watch.free("") and watch.free("me")
    watch.see({"old": 10}, 1_003_000, 3.0)
    assert watch.free("old") and watch.free("never seen")


def test_lost_heartbeats_and_a_lost_connection_kill_nobody() -> None:
    watch = Watch("me", 3.0)
    watch.see({"a": 3000}, 0, 0.0)
    watch.see({"a": 4000}, 1000, 1.0)
    watch.see({}, 2000, 2.0)  # flushed
    assert watch.alive == {"me", "a"}
    watch.interrupt()
    watch.see({}, 5000, 3.5)
    assert watch.alive == {"me", "a"} and not watch.free("a")
    for now in (4.5, 5.5, 6.6):
        watch.see({}, 9000, now)
    assert watch.alive == {"me"} and watch.free("a")


def test_a_process_that_stood_still_has_not_watched() -> None:
    watch = Watch("me", 3.0)
    for now in (0.0, 1.0, 2.0):
        watch.see({"a": int(3000 + now * 1000)}, int(now * 1000), now)
    watch.see({"a": 5000}, 60_000, 60.0)
    assert watch.alive == {"me", "a"} and not watch.free("a")


def test_one_that_said_that_it_ends_is_gone_at_once() -> None:
    watch = Watch("me", 3.0)
    watch.see({"a": 3000}, 0, 0.0)
    watch.see({"a": -500}, 500, 0.5)
    assert watch.alive == {"me"} and watch.free("a")


# what to do about it


def free(holder: str) -> bool:
    return holder in ("", "me", "dead")


def test_a_plan() -> None:
    fences = {0: (1, "me"), 1: (5, "a"), 2: (3, "me"), 3: (0, ""), 4: (2, "dead"), 5: (2, "a"), 6: (9, "me")}
    held = {0: 1, 1: 4, 2: 3}
    assert plan("me", {0, 3, 4, 5}, held, fences, free) == Plan(
        frozenset({1}), frozenset({2}), frozenset({3, 4}), frozenset({6})
    )


def test_what_was_seen_before_we_took_a_shard_takes_nothing_away() -> None:
    assert not plan("me", {0, 1}, {0: 5, 1: 5}, {0: (4, "a"), 1: (0, "")}, free)
    assert plan("me", {0}, {0: 5}, {0: (5, "a")}, free).taken == {0}
    assert not plan("me", {0}, {0: 5}, {0: (5, "")}, free)


@given(st.data())
def test_replicas_that_act_on_their_plans_settle_with_one_owner_each(data: st.DataObject) -> None:
    members = sorted(data.draw(st.sets(st.sampled_from("abcde"), min_size=1)))
    shards = range(8)
    fences = {shard: (1, data.draw(st.sampled_from(["", "dead", *members]))) for shard in shards}
    held = {
        member: {shard: 1 for shard, (_, holder) in fences.items() if holder == member} for member in members
    }
    assigned = assign(members, shards)
    for _ in range(3):
        for member in data.draw(st.permutations(members)):
            wanted = {shard for shard in shards if assigned[shard] == member}
            todo = plan(
                member,
                wanted,
                held[member],
                fences,
                lambda holder, member=member: holder in ("", "dead", member),
            )
            for shard in todo.leave:
                fences[shard] = (held[member].pop(shard), "")
            for shard in todo.claim:
                fences[shard] = (fences[shard][0] + 1, member)
                held[member][shard] = fences[shard][0]
    assert {shard: holder for shard, (_, holder) in fences.items()} == assigned
    assert {member: set(of) for member, of in held.items()} == {
        m: {s for s in shards if assigned[s] == m} for m in members
    }
