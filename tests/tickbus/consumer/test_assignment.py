"""Who should own which shard, and who counts as alive."""

from hypothesis import given
from hypothesis import strategies as st

from tickbus.consumer.assignment import Plan, Watch, assign, plan

SHARDS = range(64)
MEMBERS = st.sets(st.text("abc:0123", min_size=1, max_size=12), min_size=1, max_size=8)


@given(MEMBERS)
def test_assignment_has_one_owner_per_shard_and_is_the_same_everywhere(members: set[str]) -> None:
    assigned = assign(members, SHARDS)
    assert assigned.keys() == set(SHARDS)
    assert set(assigned.values()) <= members
    assert assign(sorted(members, reverse=True), SHARDS) == assigned


@given(MEMBERS, st.data())
def test_leaving_member_moves_only_its_own_shards(members: set[str], data: st.DataObject) -> None:
    """Read backwards: a member that joins only takes."""
    gone = data.draw(st.sampled_from(sorted(members)))
    before, after = assign(members, SHARDS), assign(members - {gone}, SHARDS)
    if members == {gone}:
        assert after == {}
    else:
        assert {shard for shard in SHARDS if before[shard] != after[shard]} == {
            shard for shard in SHARDS if before[shard] == gone
        }


def test_assignment_is_stable_across_processes_and_versions() -> None:
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


def test_assignment_is_nearly_even() -> None:
    members = [f"host:{pid}:{pid:08x}" for pid in range(4)]
    assigned = list(assign(members, range(1000)).values())
    assert all(200 < assigned.count(member) < 300 for member in members)


# who is alive: a heartbeat says until when


def test_member_is_alive_while_its_heartbeat_changes() -> None:
    watch = Watch("me", 3.0)
    for second in range(10):
        watch.observe(
            {"me": 0, "a": 3000 + 1000 * second, "b": 3000 + 1000 * min(second, 3)},
            1000 * second,
            float(second),
        )
        # b's heartbeat last changed at 3 s
        assert watch.alive == ({"me", "a", "b"} if second < 6 else {"me", "a"})
        assert watch.free("b") == (second >= 6)
        assert not watch.free("a")


def test_new_replica_waits_a_whole_ttl_before_it_declares_a_member_dead() -> None:
    """A failover may have lost the heartbeats, or they may be old because Redis itself was unavailable."""
    watch = Watch("me", 3.0)
    for second in range(3):
        watch.observe({"old": 10}, 1_000_000 + second * 1000, float(second))
        assert watch.alive == {"me"}
        assert not watch.free("old") and not watch.free("never seen")
        assert watch.free("") and watch.free("me")
    watch.observe({"old": 10}, 1_003_000, 3.0)
    assert watch.free("old") and watch.free("never seen")


def test_lost_heartbeats_or_connection_do_not_make_a_member_dead() -> None:
    watch = Watch("me", 3.0)
    watch.observe({"a": 3000}, 0, 0.0)
    watch.observe({"a": 4000}, 1000, 1.0)
    watch.observe({}, 2000, 2.0)  # flushed
    assert watch.alive == {"me", "a"}
    watch.interrupt()
    watch.observe({}, 5000, 3.5)
    assert watch.alive == {"me", "a"} and not watch.free("a")
    for now in (4.5, 5.5, 6.6):
        watch.observe({}, 9000, now)
    assert watch.alive == {"me"} and watch.free("a")


def test_stalled_process_does_not_count_as_watching() -> None:
    watch = Watch("me", 3.0)
    for now in (0.0, 1.0, 2.0):
        watch.observe({"a": int(3000 + now * 1000)}, int(now * 1000), now)
    watch.observe({"a": 5000}, 60_000, 60.0)
    assert watch.alive == {"me", "a"} and not watch.free("a")


def test_member_that_announced_its_end_is_gone_at_once() -> None:
    watch = Watch("me", 3.0)
    watch.observe({"a": 3000}, 0, 0.0)
    watch.observe({"a": -500}, 500, 0.5)
    assert watch.alive == {"me"} and watch.free("a")


# what to do about it


def free(holder: str) -> bool:
    return holder in ("", "me", "dead")


def test_plan_sorts_shards_into_taken_release_claim_and_orphaned() -> None:
    fences = {0: (1, "me"), 1: (5, "a"), 2: (3, "me"), 3: (0, ""), 4: (2, "dead"), 5: (2, "a"), 6: (9, "me")}
    owned = {0: 1, 1: 4, 2: 3}
    assert plan("me", {0, 3, 4, 5}, owned, fences, free) == Plan(
        frozenset({1}), frozenset({2}), frozenset({3, 4}), frozenset({6})
    )


def test_fence_seen_before_our_claim_takes_nothing_away() -> None:
    assert not plan("me", {0, 1}, {0: 5, 1: 5}, {0: (4, "a"), 1: (0, "")}, free)
    assert plan("me", {0}, {0: 5}, {0: (5, "a")}, free).taken == {0}
    assert not plan("me", {0}, {0: 5}, {0: (5, "")}, free)


@given(st.data())
def test_replicas_that_follow_their_plans_settle_on_one_owner_per_shard(data: st.DataObject) -> None:
    members = sorted(data.draw(st.sets(st.sampled_from("abcde"), min_size=1)))
    shards = range(8)
    fences = {shard: (1, data.draw(st.sampled_from(["", "dead", *members]))) for shard in shards}
    owned = {
        member: {shard: 1 for shard, (_, holder) in fences.items() if holder == member} for member in members
    }
    assigned = assign(members, shards)
    for _ in range(3):
        for member in data.draw(st.permutations(members)):
            wanted = {shard for shard in shards if assigned[shard] == member}
            todo = plan(member, wanted, owned[member], fences, {"", "dead", member}.__contains__)
            for shard in todo.release:
                fences[shard] = (owned[member].pop(shard), "")
            for shard in todo.claim:
                fences[shard] = (fences[shard][0] + 1, member)
                owned[member][shard] = fences[shard][0]
    assert {shard: holder for shard, (_, holder) in fences.items()} == assigned
    assert {member: set(shards_of) for member, shards_of in owned.items()} == {
        member: {shard for shard in shards if assigned[shard] == member} for member in members
    }
