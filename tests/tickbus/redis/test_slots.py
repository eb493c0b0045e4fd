"""Slots of keys and keys of commands, compared with Redis itself, and how evenly the shards are spread."""

from collections import Counter

import pytest
import redis.crc
from hypothesis import given
from hypothesis import strategies as st

from tickbus.protocol.names import DEFAULT_SHARDS, Keys, Stream
from tickbus.redis.resp import Command
from tickbus.redis.slots import SLOTS, SlotMap, command_slot, key_slot, parse_slots
from tickbus.redis.urls import Node


@given(st.text("{}ab1", max_size=12))
def test_key_slot_equals_that_of_redis_py(key: str) -> None:
    assert key_slot(key) == redis.crc.key_slot(key.encode()) == key_slot(key.encode())


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        ("", 0),
        ("123456789", 12739),
        ("{user1000}.following", 3443),
        ("foo{}{bar}", 8363),
        ("foo{{bar}}zap", 4015),
    ],
)
def test_key_slot_of_known_keys(key: str, slot: int) -> None:
    assert key_slot(key) == slot


def test_all_keys_of_a_shard_share_a_slot() -> None:
    keys = Keys()
    shard = keys.shard("BTC-USDT")
    shard_keys = [
        keys.bell(shard),
        keys.last(shard),
        keys.era(shard),
        keys.fence(shard, "a"),
        keys.position(shard, "b"),
        keys.state(shard, "b"),
    ]
    assert {key_slot(key) for key in (*shard_keys, keys.stream(Stream("trade", "binance", "BTC-USDT")))} == {
        key_slot(keys.bell(shard))
    }


def test_shards_are_spread_evenly_over_three_and_six_masters() -> None:
    slots = [key_slot(Keys().bell(shard)) for shard in range(DEFAULT_SHARDS)]
    assert len(set(slots)) == DEFAULT_SHARDS
    for masters, max_ratio in ((3, 1.3), (6, 1.7)):
        per_master = Counter(slot * masters // SLOTS for slot in slots)
        assert len(per_master) == masters
        assert max(per_master.values()) <= max_ratio * DEFAULT_SHARDS / masters, per_master


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "k"), "k"),
        (("set", b"k", 1), "k"),
        (("XINFO", "STREAM", "k"), "k"),
        (("MEMORY", "USAGE", b"k"), "k"),
        (("XGROUP", "CREATE", "k", "g", "$"), "k"),
        (("OBJECT", "FREQ", "k"), "k"),
        (("XREAD", "COUNT", 5, "BLOCK", 10, "STREAMS", "k", "0-0"), "k"),
        (("EVAL", "return 1", 1, "k"), "k"),
    ],
)
def test_command_slot_is_that_of_its_key(command: Command, key: str) -> None:
    assert command_slot(command) == key_slot(key)


@pytest.mark.parametrize("command", [("TIME",), ("info", "server"), ("PING",), ("EVAL", "return 1", 0)])
def test_commands_without_a_key_go_to_slot_0(command: Command) -> None:
    assert command_slot(command) == 0


def test_slot_map_with_a_hole_and_unknown_hosts() -> None:
    source = Node("here", 1)
    slots, nodes = parse_slots(
        [
            [100, 199, [b"", 7001, b"id"], [b"b", 7004, b"id"]],
            [0, 50, [b"a", 7002, b"id"]],
            [51, 51, [None, 7001, b"id"]],
        ],
        source,
    )
    assert [slots.master(slot) for slot in (0, 50, 51, 52, 99, 100, 199, 200, SLOTS - 1)] == [
        Node("a", 7002), Node("a", 7002), Node("here", 7001), None, None, Node("here", 7001),
        Node("here", 7001), None, None,
    ]  # fmt: skip
    assert slots.masters == [Node("a", 7002), Node("here", 7001)]
    assert nodes == [Node("a", 7002), Node("here", 7001), Node("b", 7004)]
    assert SlotMap([]).master(0) is None
