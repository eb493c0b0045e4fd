"""Subscriptions that change while the gateway runs: real processes, compared with the vendor's ledger."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from support.bus import messages_in
from support.processes import Process, tickbus
from support.redis_server import RedisServer
from support.subscribing import Venue
from support.waiting import until

from tickbus.protocol.messages import Bar, Gap, GapKind, Trade
from tickbus.protocol.names import Keys, Stream

Start = Callable[..., Process]
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def venue(start: Start, redis_server: RedisServer, tmp_path: Path) -> Callable[[str], Venue]:
    return lambda feed: Venue(start, redis_server, tmp_path, feed)


def status(redis: RedisServer, stream: str) -> dict[str, object]:
    rows = json.loads(tickbus("status", "--json", "--redis", redis.url).stdout)["streams"]
    (row,) = (one for one in rows if one["stream"] == stream)
    return dict(row)


@pytest.mark.parametrize("feed", ["binance", "alltick", "json", "json-unsubscribe"])
def test_symbols_come_and_go_beside_a_steady_one(
    feed: str, venue: Callable[[str], Venue], redis_server: RedisServer
) -> None:
    names_drops = feed == "json-unsubscribe"
    one = venue(feed.partition("-")[0])
    one.simulate()
    gateway = one.gateway(*(("--json-unsubscribe", "unsubscribe") if names_drops else ())).wait_ready()
    assert gateway.metric("tickbus_feed_idle") == 1
    assert one.connects() == 0, "there is nothing to connect for"

    steady = one.want("AA-USDT", kind=("trade", "quote"))
    one.wait_for({"trade AA-USDT": "active", "quote AA-USDT": "active"})
    one.wait_trades("AA-USDT")
    assert gateway.metric("tickbus_feed_idle") == 0
    other = one.want("BB-USDT", "CC-USDT", "DD-USDT")
    one.wait_state("trade BB-USDT", "active")
    one.wait_trades("BB-USDT")
    other.drop(["BB-USDT", "CC-USDT"])
    one.wait_for({"trade AA-USDT": "active", "quote AA-USDT": "active", "trade DD-USDT": "active"})
    ended = one.entries("BB-USDT")
    other.add(["BB-USDT"])
    one.wait_state("trade BB-USDT", "active")
    one.wait_trades("BB-USDT", 10)
    steady.drop(["AA-USDT"], kind="quote")
    one.wait_state("quote AA-USDT", "absent")
    since = len(one.entries("AA-USDT"))
    one.wait_trades("AA-USDT")
    label = {"kind": "unsubscribed"}
    counted = gateway.metric("tickbus_gaps_total", **label), gateway.metric("tickbus_gaps_total")
    assert gateway.metric("tickbus_missing_ticks_total") == 0
    assert gateway.metric("tickbus_feed_reconnects_total") == 0
    row = status(redis_server, f"trade:{one.feed}:BB-USDT")
    one.finish(gateway)
    steady.close()
    other.close()

    assert one.check_steady("AA-USDT") > 20
    assert one.connects() == 1
    last = len(ended)
    assert one.entries("BB-USDT")[:last] == ended
    (_, end), (_, back) = one.entries("BB-USDT")[last - 1 : last + 1]
    assert isinstance(end, Gap)
    assert (end.kind, end.count, end.from_id, end.to_id, end.repairable) == (
        GapKind.UNSUBSCRIBED, None, None, None, False,
    )  # fmt: skip
    assert end.from_ts == end.to_ts
    assert isinstance(back, Gap)
    assert (back.kind, back.count, back.repairable) == (GapKind.UNSUBSCRIBED, None, False)
    assert back.from_ts <= back.to_ts
    trades = one.trades("BB-USDT")
    (_, before), (_, after) = one.entries("BB-USDT")[last - 2], one.entries("BB-USDT")[last + 1]
    assert isinstance(before, Trade)
    assert isinstance(after, Trade)
    if one.feed == "binance":
        missed = (str(int(before.trade_id or "") + 1), str(int(after.trade_id or "") - 1))
        assert (back.from_id, back.to_id) == missed
        assert one.stored("BB-USDT") == [
            tick for tick in one.sent("BB-USDT") if tick in one.stored("BB-USDT")
        ]
    else:
        assert (back.from_id, back.to_id) == (None, None)
    assert len(one.gaps("BB-USDT")) == 2, "none at the first start"
    assert (row["gaps"], row["missing"]) == ({"unsubscribed": 2}, 0)
    assert len(trades) > 10
    gaps = sum(len(one.gaps(symbol)) for symbol in ("BB-USDT", "CC-USDT")) + len(one.gaps("AA-USDT", "quote"))
    assert counted == (gaps, gaps)
    late = [message for _, message in one.entries("AA-USDT")[since:]]
    assert all(
        isinstance(trade, Trade) and trade.bid_text is None and trade.ask_text is None for trade in late
    )
    early = [message for _, message in one.entries("AA-USDT")[:since]]
    assert any(isinstance(trade, Trade) and trade.bid_text is not None for trade in early)
    check_frames(one, feed)


def check_frames(one: Venue, feed: str) -> None:
    """The vendor got the least that its protocol allows."""
    events = one.events("subscribe", "unsubscribe")
    if feed == "binance":
        said = [(row["event"], sorted(row["streams"])) for row in events]
        assert said == [
            ("subscribe", ["aausdt@bookTicker", "aausdt@trade"]),
            ("subscribe", ["bbusdt@trade", "ccusdt@trade", "ddusdt@trade"]),
            ("unsubscribe", ["bbusdt@trade", "ccusdt@trade"]),
            ("subscribe", ["bbusdt@trade"]),
            ("unsubscribe", ["aausdt@bookTicker"]),
        ]
    elif feed == "alltick":
        lists = [(row.get("kind"), row.get("symbols", row.get("kinds"))) for row in events]
        assert [entry for entry in lists if entry[0] == "trade"] == [
            ("trade", ["AA-USDT"]),
            ("trade", ["AA-USDT", "BB-USDT", "CC-USDT", "DD-USDT"]),
            ("trade", ["AA-USDT", "DD-USDT"]),
            ("trade", ["AA-USDT", "DD-USDT", "BB-USDT"]),
        ]
        assert [entry for entry in lists if entry[0] != "trade"] == [
            ("quote", ["AA-USDT"]),
            (None, ["quote"]),
        ]
        times = [row["at"] for row in events]
        assert all(after - before > 900_000_000 for before, after in pairwise(times))
    else:
        told = [(row["event"], row["symbols"], row["quotes"]) for row in events]
        ending = [
            ("unsubscribe", ["BB-USDT", "CC-USDT"], True)
            if feed == "json-unsubscribe"
            else ("subscribe", ["AA-USDT", "DD-USDT"], True)
        ]
        assert told == [
            ("subscribe", ["AA-USDT"], True),
            ("subscribe", ["AA-USDT", "BB-USDT", "CC-USDT", "DD-USDT"], True),
            *ending,
            ("subscribe", ["AA-USDT", "DD-USDT", "BB-USDT"], True),
            ("subscribe", ["AA-USDT", "DD-USDT", "BB-USDT"], False),
        ]


@pytest.mark.parametrize("feed", ["binance", "alltick", "json"])
def test_a_symbol_that_the_vendor_refuses_costs_the_others_nothing(
    feed: str, venue: Callable[[str], Venue]
) -> None:
    one = venue(feed)
    one.simulate("--refuse-symbols", one.spelling("XX-USDT"))
    gateway = one.gateway("--symbols", "AA-USDT").wait_ready()
    one.wait_trades("AA-USDT")
    wanted = one.want("BB-USDT", "XX-USDT", "CC-USDT")
    expected = {"trade AA-USDT": "active", "trade BB-USDT": "active", "trade CC-USDT": "active"}
    one.wait_for(expected | {"trade XX-USDT": "refused"})
    words = {"binance": "Invalid symbol", "alltick": "604", "json": "unknown symbol XX-USDT"}
    assert words[feed] in one.states()["trade XX-USDT"].reason
    for symbol in ("AA-USDT", "BB-USDT", "CC-USDT"):
        one.wait_trades(symbol)
    assert (one.connects(), gateway.metric("tickbus_feed_reconnects_total")) == (1, 0)
    one.finish(gateway)
    wanted.close()
    one.check_steady("AA-USDT")
    assert one.trades("XX-USDT") == []


def test_what_is_over_the_cap_waits_until_there_is_room(venue: Callable[[str], Venue]) -> None:
    one = venue("binance")
    one.simulate()
    gateway = one.gateway("--symbols", "AA-USDT", "--max-symbols", "3", linger="10m").wait_ready()
    first = one.want("BB-USDT", "CC-USDT")
    active = {"trade AA-USDT": "active", "trade BB-USDT": "active", "trade CC-USDT": "active"}
    one.wait_for(active)
    second = one.want("DD-USDT")
    one.wait_for(active | {"trade DD-USDT": "refused"})
    assert one.states()["trade DD-USDT"].reason == "cap of 3 symbols reached"
    first.drop(["CC-USDT"])
    # it lingers, so it gives its place away at once
    one.wait_for({"trade AA-USDT": "active", "trade BB-USDT": "active", "trade DD-USDT": "active"})
    one.wait_trades("DD-USDT")
    second.close()
    one.wait_state("trade DD-USDT", "lingering")
    since = one.states()["trade DD-USDT"].since
    again = one.want("DD-USDT")
    one.wait_state("trade DD-USDT", "active")
    assert one.states()["trade DD-USDT"].since >= since
    first.close()
    again.close()
    one.finish(gateway)
    one.check_steady("AA-USDT")
    assert one.gaps("DD-USDT") == [], "what lingered never paused"
    assert [gap.kind for gap in one.gaps("CC-USDT")] == [GapKind.UNSUBSCRIBED]


def test_what_is_over_the_vendor_s_own_cap_is_refused_by_name(venue: Callable[[str], Venue]) -> None:
    """Also if the cap is not known: Binance says `Too many subscriptions`."""
    one = venue("binance")
    one.simulate("--symbol-cap", "3")
    gateway = one.gateway("--symbols", "AA-USDT,BB-USDT").wait_ready()
    wanted = one.want("CC-USDT", "DD-USDT", "EE-USDT")
    expected = {"trade AA-USDT": "active", "trade BB-USDT": "active", "trade CC-USDT": "active"}
    one.wait_for(expected | {"trade DD-USDT": "refused", "trade EE-USDT": "refused"})
    assert "Too many subscriptions" in one.states()["trade DD-USDT"].reason
    one.wait_trades("CC-USDT")
    assert one.connects() == 1
    wanted.close()
    one.finish(gateway)
    one.check_steady("AA-USDT")
    one.check_steady("BB-USDT")


RULES = """
[[holder]]
holder = "app-*"
kinds = ["trade"]
symbols = ["A*", "BB-USDT"]
most = 2
"""


def test_rules_of_the_operator_and_garbage_in_the_keys(
    venue: Callable[[str], Venue], redis_server: RedisServer, tmp_path: Path
) -> None:
    one, file = venue("binance"), tmp_path / "wants.toml"
    file.write_text(RULES)
    one.simulate()
    gateway = one.gateway("--wants", str(file), "--kinds", "trade,quote").wait_ready()
    app = one.want("AA-USDT", name="app")
    one.wait_for({"trade AA-USDT": "active"})
    app.add(["ZZ-USDT"])
    app.add(["AA-USDT"], kind="quote")
    other = one.want("YY-USDT", name="other")
    refused = {"trade ZZ-USDT": "refused", "quote AA-USDT": "refused", "trade YY-USDT": "refused"}
    one.wait_for({"trade AA-USDT": "active"} | refused)
    reasons = {topic: state.reason for topic, state in one.states().items()}
    assert reasons["trade ZZ-USDT"] == f"holder {app.holder} may not want trade ZZ-USDT (--wants)"
    assert reasons["quote AA-USDT"] == f"holder {app.holder} may not want quote AA-USDT (--wants)"
    assert reasons["trade YY-USDT"] == f"holder {other.holder} may not want anything (--wants)"

    # what others write there harms nobody
    keys, client = Keys(), redis_server.client
    holders = keys.holders("binance")
    client.set(keys.wants("binance", "app-text"), "x")
    client.hset(keys.wants("binance", "app-many"), mapping={f"trade A{n}": 1 for n in range(20_000)})
    client.hset(
        keys.wants("binance", "app-bad"),
        mapping={"trade": "1", "trade a b": "1", "bar A-B": "1", "\xff\n": "1", "trade AB-USDT": "soon"},
    )
    client.xadd(keys.wants("binance", "app-stream"), {"a": "b"})
    for number, name in enumerate(["app-text", "app-many", "app-bad", "app-stream", "app-none", "a b\n", ""]):
        client.execute_command("ZADD", holders, number, name)
    client.execute_command("ZADD", holders, "-inf", b"\xff\xfe")
    client.execute_command("ZADD", holders, "inf", "#read2")
    one.wait_for({"trade AA-USDT": "active", "trade AB-USDT": "active"} | refused)
    gateway.wait_for("wants of app-many are not read: 20000 wants, at most 10000 are read")

    # a file that cannot be used changes nothing; the next one does
    file.write_text("[[holder]\n")
    gateway.wait_for("the rules before it stay in force")
    app.add(["BB-USDT"])
    one.wait_state("trade BB-USDT", "active")
    file.write_text(RULES + '[[holder]]\nholder = "other-*"\n')
    one.wait_state("trade YY-USDT", "active")
    assert gateway.get("/readyz")[0] == 200
    app.close()
    other.close()
    one.finish(gateway)
    one.check_steady("AA-USDT")
    assert one.connects() == 1


def test_a_symbol_whose_keys_are_damaged_is_refused_alone(
    venue: Callable[[str], Venue], redis_server: RedisServer
) -> None:
    one, keys, client = venue("binance"), Keys(), redis_server.client
    one.simulate()
    gateway = one.gateway("--symbols", "AA-USDT").wait_ready()
    one.wait_trades("AA-USDT")
    # heads that nobody can read, a key of another type, entries of the year 2096, another spelling
    client.hset(keys.last(keys.shard("GG-USDT")), "trade:binance:GG-USDT", b"\xc1garbage")
    client.hset(keys.last(keys.shard("HH-USDT")), "trade:binance:HH-USDT", b"")
    client.set(keys.stream(Stream("trade", "binance", "II-USDT")), "text")
    client.xadd(keys.stream(Stream("trade", "binance", "JJ-USDT")), {"t": b"foreign"}, id="3976300800000-7")
    client.hset(keys.subscriptions(keys.shard("KK-USDT"), "binance"), "trade KK-USDT", "not JSON")
    wanted = one.want("AAUSDT", "BB-USDT", "GG-USDT", "HH-USDT", "II-USDT", "JJ-USDT", "KK-USDT")
    one.wait_state("trade BB-USDT", "active")
    one.wait_state("trade KK-USDT", "active")
    one.wait_state("trade AAUSDT", "refused")
    one.wait_state("trade JJ-USDT", "refused")
    print({topic: (state.state, state.reason) for topic, state in one.states().items()})
    one.wait_trades("BB-USDT")
    one.wait_trades("KK-USDT")
    assert gateway.process.poll() is None
    assert one.connects() == 1
    wanted.close()
    one.finish(gateway)
    one.check_steady("AA-USDT")


def test_command_prints_what_becomes_of_wants(
    venue: Callable[[str], Venue], start: Start, redis_server: RedisServer
) -> None:
    one = venue("binance")
    one.simulate("--refuse-symbols", "XXUSDT")
    one.gateway("--symbols", "AA-USDT").wait_ready()
    command = start("want", "BB-USDT", "XX-USDT", "--feed", "binance", "--redis", redis_server.url)
    command.wait_for("trade BB-USDT: active")
    command.wait_for("trade XX-USDT: refused: .*Invalid symbol")
    assert command.stop() == 0
    assert one.state("trade BB-USDT") in ("active", "lingering")
    ended = tickbus("want", "BB-USDT", "--feed", "binance", "--for", "1s", "--redis", redis_server.url)
    assert (ended.returncode, ended.stdout.splitlines()[0]) == (0, "trade BB-USDT: active")
    bad = tickbus("want", "a b", "--feed", "binance", "--redis", redis_server.url)
    assert (bad.returncode, len(bad.stderr.splitlines())) == (2, 1)


def test_what_never_ticked_leaves_nothing_and_first_bars_are_partial(
    venue: Callable[[str], Venue], start: Start, redis_server: RedisServer
) -> None:
    one = venue("binance")
    one.simulate("--symbols", "AAUSDT,BBUSDT")
    gateway = one.gateway("--symbols", "AA-USDT").wait_ready()
    bars = start("bars", "--redis", redis_server.url, "--specs", "time:1s,time:1d").wait_ready()
    wanted = one.want("NONE-USDT", "BB-USDT")
    one.wait_state("trade NONE-USDT", "active")
    assert one.head("NONE-USDT") is not None
    until(lambda: len(messages_in(redis_server, "bar", "binance", "BB-USDT", "time:1s")) > 3, 40)
    first: Bar = messages_in(redis_server, "bar", "binance", "BB-USDT", "time:1s")[0]
    head = one.head("BB-USDT")
    assert head is not None
    assert head.subscribed > 0
    assert ("partial" in first.quality) == (first.start < head.subscribed)
    assert bars.stop() == 0
    wanted.close()
    one.wait_for({"trade AA-USDT": "active"})
    until(lambda: one.head("NONE-USDT") is None)
    assert one.head("BB-USDT") is not None
    one.finish(gateway)
