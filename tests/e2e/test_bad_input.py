"""Bad input: a command that ends does so with one clear line and the right exit code.

A command that survives it counts it, reports it and keeps working.
"""

import asyncio
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import msgpack
import pytest
from support.processes import Process, read_ledger, tickbus
from support.redis_server import RedisServer, free_port
from support.waiting import until
from websockets.asyncio.server import ServerConnection, serve

from services.cli import COMMANDS, _module
from tickbus.service.load_options import declared_options

Start = Callable[..., Process]

GATEWAY = "gateway --feed binance --symbols BTC-USDT --url ws://127.0.0.1:9 --metrics-port 0"


@dataclass(frozen=True)
class BadCommand:
    """A command that must end with `code` and one line with `message`; `places` fills in the {names}."""

    command: str
    code: int
    message: str
    file: str = ""
    """Content of the file {file}."""


COMMAND_LINES = [
    BadCommand("bogus", 2,
               "unknown command 'bogus': expected one of demo, gateway, bars, signals, recorder, "
               "simulate, relay, notify, want, tail, status, replay"),
    BadCommand("gateway", 2, "--feed is missing (also TICKBUS_FEED): the vendor's protocol"),
    BadCommand("gateway --feed reuters --symbols A", 2,
               "unknown feed 'reuters': expected one of alltick, binance, json"),
    BadCommand("gateway --feed json --wants none", 2, "--symbols is missing"),
    BadCommand("gateway --feed json --symbols btc-usdt", 2, "symbol 'btc-usdt': expected A-Z 0-9 . _ -"),
    BadCommand("gateway --feed json --symbols BTC/USDT", 2, "map other spellings with --symbol-map"),
    BadCommand("gateway --feed json --symbols @{none}", 2, "--symbols {none}: No such file or directory"),
    BadCommand("gateway --feed binance --symbols BTC-USDT,BTCUSDT", 2, "both map to 'BTCUSDT' at the vendor"),
    BadCommand("gateway --feed json --symbols A --symbol-map {file}", 2,
               "line 1: invalid entry 'A': expected canonical = vendor", "A"),
    BadCommand("gateway --feed json --symbols A --kinds trade,depth", 2,
               "invalid --kinds depth: this feed has trade, quote"),
    BadCommand("gateway --feed json --symbols A --kinds ,", 2,
               "--kinds is empty: expected trade, quote or both"),
    BadCommand("gateway --feed json --symbols A --json-fields cost=p", 2,
               "invalid --json-fields cost=p: expected ours=theirs"),
    BadCommand("gateway --feed json --symbols A --name My.Feed", 2, "name 'My.Feed': expected a-z 0-9 _ -"),
    BadCommand("gateway --feed json --symbols A --session always", 2,
               "invalid trading hours 'always': expected e.g. 'mon-fri 09:30-16:00 America/New_York'"),
    BadCommand("gateway --feed json --symbols A --silence 5", 2,
               "--silence: invalid duration '5': expected e.g. 500ms, 2s"),
    BadCommand("gateway --feed json --symbols A --max-frame 1", 2,
               "--max-frame: 1B is out of range: expected at least 1KB"),
    BadCommand("gateway --feed json --symbols A --url http://u:secret@h?token=secret", 2,
               "invalid --url http://***@h: expected ws://host:port or wss://host"),
    BadCommand("gateway --feed json --symbols A --url ws://[::1", 2, "--url ws://[::1: Invalid IPv6 URL"),
    BadCommand("gateway --feed json --symbols A --url ws://h:0", 2,
               "invalid --url ws://h:0: expected ws://host:port or wss://host"),
    BadCommand("gateway --feed alltick --symbols A --token s3cret --url ws://me@h", 2,
               "invalid --url ws://***@h: expected user:password@ or neither"),
    BadCommand("gateway --feed alltick --symbols A --token s3cret --url ws://h/p#f", 2,
               "invalid --url ws://h/p#f: expected user:password@ or neither"),
    BadCommand("gateway --feed json --symbols A --max-connection-age 1h", 2,
               "--max-connection-age: feed json cannot replace a connection without a hole"),
    BadCommand("gateway --feed binance --symbols A-B --json-fields price=p", 2,
               "--json-fields is an option of json, not of binance (--feed); leave it out"),
    BadCommand("gateway --feed json --symbols A --json-fields price=volume", 2,
               "invalid --json-fields price=volume: price (volume) and volume (volume) are the same field"),
    BadCommand("gateway --feed json --symbols A --json-fields trades=data..items", 2,
               "invalid --json-fields trades=data..items: expected a name, or names with dots between them"),
    BadCommand("gateway --feed json --symbols A --json-ids some", 2,
               "--json-ids: invalid value 'some': expected one of none, unique, sequential"),
    BadCommand("gateway --feed json --symbols A --oldest yesterday", 2,
               "--oldest: invalid time 'yesterday': expected e.g. 2024-08-09T13:30:00Z"),
    BadCommand("gateway --feed json --symbols A --oldest 2200-01-01", 2,
               "--oldest 2200-01-01: expected a time in the past"),
    BadCommand("gateway --feed binance --symbols A-B --url wss://fstream.binance.com", 2,
               "futures or options, and the binance feed speaks the JSON streams of spot"),
    BadCommand("gateway --feed json --symbols A --url ws://h:99999", 2,
               "--url ws://h:99999: Port out of range 0-65535"),
    BadCommand("gateway --feed json --symbols A --token x --token-file {file}", 2,
               "--token, --token-file: give the value or a file that contains it, not both"),
    BadCommand("gateway --feed json --symbols A --token-file {none}", 2,
               "--token-file: cannot read {none}: No such file or directory"),
    BadCommand("gateway --feed json --symbols A --bogus 1", 2,
               "unrecognized arguments: --bogus 1; see tickbus gateway --help"),
    BadCommand("gateway --feed json --symbols A --metrics-port 70000", 2,
               "--metrics-port: 70000 is out of range: expected at least -1 and at most 65535"),
    BadCommand("gateway --feed json --symbols A --log-level loud", 2,
               "--log-level: invalid value 'loud': expected one of debug, info, warning, error"),
    BadCommand("bars --specs hourly", 2, "bar spec 'hourly': expected time:<n>s|m|h|d"),
    BadCommand("bars --specs ,", 2, "--specs is empty"),
    BadCommand("bars --specs time:500ms", 2, "expected a whole number of s, m, h or d"),
    BadCommand("bars --from yesterday", 2, "invalid time 'yesterday': expected e.g. 2024-08-09T13:30:00Z"),
    BadCommand("bars --name Bars", 2, "name 'Bars': expected a-z 0-9 _ -"),
    BadCommand("recorder --kinds depth", 2, "invalid --kinds depth: expected trade, quote, bar"),
    BadCommand("recorder --kinds ,", 2, "--kinds is empty"),
    BadCommand("recorder --flush-interval 1ms --data-dir {folder}", 2,
               "--flush-interval: 1ms is out of range: expected at least 10ms"),
    BadCommand("recorder --data-dir {file}/below", 2,
               "--data-dir {file}/below: Not a directory; use a writable folder"),
    BadCommand("recorder --data-dir /proc/tickbus", 2,
               "--data-dir /proc/tickbus: No such file or directory; use a writable folder"),
    BadCommand("simulate --source tape", 2, "invalid --source tape: expected synthetic, capture:FILE"),
    BadCommand("simulate --speed fast", 2,
               "invalid --speed fast: expected a number, e.g. 1, 10 or 0.5, or max"),
    BadCommand("simulate --faults explode=1", 2, "unknown word 'explode'"),
    BadCommand("tail --kind depth", 2,
               "--kind: invalid value 'depth': expected one of trade, quote, bar, signal, gap"),
    BadCommand("tail btc", 2, "symbol 'btc': expected A-Z 0-9 . _ -"),
    BadCommand("status --json=maybe", 2, "--json: invalid value 'maybe': expected true or false"),
    BadCommand("replay", 2, "DATA_DIR is missing"),
    BadCommand("replay {none}", 2, "DATA_DIR {none}: no such folder"),
    BadCommand("demo --seconds 0", 2, "--seconds: 0 is out of range: expected at least 1"),
    # files
    BadCommand("gateway --config {none}", 2, "--config {none}: No such file or directory"),
    BadCommand("gateway --config {file}", 2,
               "invalid TOML file {file}: Expected ']' at the end of a table declaration "
               "(at line 1, column 9)", "[gateway\n"),
    BadCommand("gateway --config {file}", 2,
               "unknown key 'redsi' at the top; did you mean 'redis'?", 'redsi = "x"'),
    BadCommand("gateway --config {file}", 2,
               "unknown key 'symbols' at the top; put a command's own options in its table", 'symbols = "A"'),
    BadCommand("gateway --config {file}", 2, "unknown table [gatewy]; did you mean 'gateway'?", "[gatewy]"),
    BadCommand("gateway --config {file}", 2,
               "'gateway' is a command: put its options in a table [gateway]", "gateway = 1"),
    BadCommand("gateway --config {file}", 2,
               "unknown key 'feeed' in [gateway]; did you mean 'feed'?", '[gateway]\nfeeed = "json"'),
    BadCommand("gateway --config {file}", 2,
               "unknown key 'grcae' in [bars]; did you mean 'grace'?", '[bars]\ngrcae = "2s"'),
    BadCommand("bars --config {file}", 2,
               "{file}: grace: invalid duration '5': expected e.g. 500ms, 2s", "[bars]\ngrace = 5"),
    BadCommand("bars --config {file}", 2,
               "{file}: metrics_port: invalid value 1.5: expected a whole number",
               "[bars]\nmetrics-port = 1.5"),
    BadCommand("bars --config {file}", 2,
               "{file}: specs: invalid value 1: expected text; put it in quotes", "[bars]\nspecs = [1]"),
    # Redis
    *(
        BadCommand(f"{command} --redis redis://127.0.0.1:{{nobody}}/0", 3,
                   "no Redis at redis://127.0.0.1:{nobody}/0: ")
        for command in (
            GATEWAY, "bars", "recorder --data-dir {folder}", "tail", "status", "replay {recorded}",
        )
    ),
    *(
        row
        for command in (GATEWAY, "bars", "recorder --data-dir {folder}", "replay {recorded}")
        for row in (
            BadCommand(f"{command} --redis {{evicting}}", 3,
                       "fix: redis-cli CONFIG SET maxmemory-policy noeviction"),
            BadCommand(f"{command} --redis {{well}} --prefix other", 2,
                       "bus 'other' has 16 shards, this process is configured for 64; use --shards 16"),
            BadCommand(f"{command} --redis {{well}} --metrics-port {{well_port}}", 2,
                       "--metrics-port {well_port}: cannot listen there: Address already in use"),
        )
    ),
    *(
        row
        for command in (GATEWAY, "status")
        for row in (
            BadCommand(f"{command} --redis {{locked}}", 3,
                       "put it into the URL: redis://:password@host:port/0"),
            BadCommand(f"{command} --redis redis://:wrong@127.0.0.1:{{locked_port}}/0", 3,
                       "rejected the login: "),
            BadCommand(f"{command} --redis http://127.0.0.1/0", 2,
                       "Redis URL must specify one of the following schemes (redis://, rediss://, unix://)"),
            BadCommand(f"{command} --redis redis://127.0.0.1/ticks", 2,
                       "invalid database 'ticks': expected a number, e.g. redis://host:port/0"),
            BadCommand(f"{command} --redis {{well}} --prefix a{{{{b", 2,
                       "prefix 'a{{b': expected letters, digits . _ - :"),
        )
    ),
    BadCommand(GATEWAY + " --redis {well} --prefix newer", 2,
               "bus 'newer' has schema 9, this version of tickbus writes 1"),
    BadCommand("bars --redis redis://:p@secret@127.0.0.1:{nobody}/0", 3,
               "no Redis at redis://***@127.0.0.1:{nobody}/0: "),
    # the vendor
    BadCommand(GATEWAY.replace("ws://127.0.0.1:9", "ws://127.0.0.1:{http}/404") + " --redis {well}", 4,
               "the vendor refused the connection: HTTP 404"),
    BadCommand(GATEWAY.replace("ws://127.0.0.1:9", "ws://127.0.0.1:{http}/401") + " --redis {well}", 4,
               "the vendor refused the connection: HTTP 401"),
    BadCommand(
        "gateway --feed alltick --name refused --symbols A --url {simulator} --token wrong --redis {well}", 4,
        "the vendor refused the connection: HTTP 401",
    ),
    BadCommand("gateway --feed alltick --name tokenless --symbols GOLD --url {simulator} --redis {well}", 4,
               "check --url and --token"),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Servers and paths that the commands name."""
    folder = tmp_path_factory.mktemp("bad")
    servers = {name: RedisServer(folder / name) for name in ("well", "evicting", "locked")}
    for server in servers.values():
        server.start()
    servers["evicting"].client.config_set("maxmemory-policy", "allkeys-lru")
    servers["well"].client.hset("other:meta", mapping={"shards": 16, "schema": 1})
    servers["well"].client.hset("newer:meta", mapping={"shards": 64, "schema": 9})
    servers["locked"].client.config_set("requirepass", "right")
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refuses)
    threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    simulator = Process(folder / "simulate.log", "simulate", "--token", "right")
    _record_something(servers["well"], folder)
    yield {
        **{name: server.url for name, server in servers.items()},
        "locked_port": str(servers["locked"].port),
        "well_port": str(servers["well"].port),
        "none": str(folder / "none"),
        "folder": str(folder / "data"),
        "recorded": str(folder / "recorded"),
        "nobody": str(free_port()),
        "http": str(web.server_address[1]),
        "simulator": simulator.wait_for(r"listening on (ws://\S+)")[1],
        "files": str(folder),
    }
    simulator.close()
    web.shutdown()
    web.server_close()
    for server in servers.values():
        server.close()


def _record_something(server: RedisServer, folder: Path) -> None:
    """Record a few trades in files, for replay."""
    simulator = Process(folder / "market.log", "simulate")
    url = simulator.wait_for(r"listening on (ws://\S+)")[1]
    bus = ("--redis", server.url, "--prefix", "first")
    gateway = Process(
        folder / "gateway.log", "gateway", "--feed", "json", "--url", url, "--symbols", "A", *bus,
    )  # fmt: skip
    recorder = Process(
        folder / "recorder.log", "recorder", "--data-dir", str(folder / "recorded"),
        "--flush-interval", "50ms", *bus,
    )  # fmt: skip
    until(lambda: recorder.metric("tickbus_recorder_rows_total") > 0, 30, "rows are recorded")
    for process in (recorder, gateway, simulator):
        process.stop()


class _Refuses(http.server.BaseHTTPRequestHandler):
    """Answers /404 with 404, and so on."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.strip("/")))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def answers(places: dict[str, str]) -> Iterator[dict[BadCommand, "Future[CompletedProcess[str]]"]]:
    """The results of all commands, run four at a time: one after the other they would take a minute."""
    with ThreadPoolExecutor(4) as pool:
        yield {row: pool.submit(_run, row, number, places) for number, row in enumerate(COMMAND_LINES)}


def _run(row: BadCommand, number: int, places: dict[str, str]) -> "CompletedProcess[str]":
    file = Path(places["files"]) / f"file{number}"
    file.write_text(row.file)
    args = [word.format(**places, file=file) for word in row.command.split()]
    return tickbus(*args, timeout=60, TICKBUS_LOG_LEVEL="warning")


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "row"),
    list(enumerate(COMMAND_LINES)),
    ids=[f"{row.command[:50]} {row.message[:30]}" for row in COMMAND_LINES],
)
def test_bad_command_line_is_refused_in_one_line(
    number: int,
    row: BadCommand,
    answers: dict[BadCommand, "Future[CompletedProcess[str]]"],
    places: dict[str, str],
) -> None:
    answer = answers[row].result()
    assert re.fullmatch(r"tickbus: .+\n", answer.stderr), answer.stderr
    assert row.message.format(**places, file=Path(places["files"]) / f"file{number}") in answer.stderr
    assert answer.returncode == row.code
    assert answer.stdout == "" or row.command.startswith("simulate")
    assert "secret" not in answer.stderr


async def test_token_refused_after_the_handshake_ends_the_gateway(redis_server: RedisServer) -> None:
    async def refuse(connection: ServerConnection) -> None:
        request = json.loads(await connection.recv())
        answer = {
            "ret": 401,
            "msg": "token is invalid",
            "cmd_id": request["cmd_id"] + 1,
            "seq_id": 1,
            "trace": "",
        }
        await connection.send(json.dumps(answer))
        await connection.wait_closed()

    async with serve(refuse, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        args = (
            "gateway", "--feed", "alltick", "--symbols", "GOLD", "--url", url, "--token", "old",
            "--redis", redis_server.url,
        )  # fmt: skip
        answer = await asyncio.to_thread(tickbus, *args)
    assert answer.returncode == 4
    assert (
        answer.stderr.count(
            "tickbus: AllTick answered 401 token is invalid: the token is not valid; check --token, --url"
        )
        == 1
    )
    assert "Traceback" not in answer.stderr


def test_gateway_retries_until_the_vendor_listens(redis_server: RedisServer, start: Start) -> None:
    port = free_port()
    gateway = start(
        "gateway", "--feed", "json", "--symbols", "AAPL", "--url", f"ws://127.0.0.1:{port}",
        "--redis", redis_server.url,
    )  # fmt: skip
    gateway.wait_for(rf"(?s)(cannot connect to ws://127\.0\.0\.1:{port}: .*Connect call failed.*){{2}}")
    assert gateway.get("/healthz")[0] == 200
    assert gateway.get("/readyz") == (503, "no subscribed upstream connection\n")
    assert gateway.metric("tickbus_feed_connected") == 0
    assert "Traceback" not in gateway.output
    start("simulate", "--port", str(port))
    gateway.wait_ready()
    until(lambda: gateway.metric("tickbus_ticks_published_total") > 0, 20, "ticks flow")
    assert gateway.metric("tickbus_feed_reconnects_total", reason="connect") >= 2
    assert gateway.metric("tickbus_gaps_total") == 0
    assert gateway.stop() == 0


def test_service_that_writes_the_bars_of_another_is_refused(redis_server: RedisServer, start: Start) -> None:
    options = ("bars", "--redis", redis_server.url)
    first = start(*options, "--specs", "time:1s,time:1m").wait_ready()
    replica = start(*options, "--specs", "time:1s,time:1m").wait_ready()
    other = start(*options, "--name", "hourly", "--specs", "time:1h").wait_ready()
    refused = tickbus(*options, "--name", "mine", "--specs", "time:60s,tick:9")
    assert (
        refused.returncode,
        refused.stderr.count(
            "tickbus: service 'bars' is running and writes the same streams; use --name bars to add a replica"
        ),
    ) == (2, 1)
    assert [service.stop() for service in (first, replica, other)] == [0, 0, 0]
    assert start(*options, "--name", "mine", "--specs", "time:60s,tick:9").wait_ready().stop() == 0


def test_replica_with_other_specs_is_refused(redis_server: RedisServer, start: Start) -> None:
    """Each would consider done what the other has processed of a shard."""
    options = ("bars", "--redis", redis_server.url, "--lease-ttl", "500ms")
    first = start(*options, "--specs", "time:1s").wait_ready()
    refused = tickbus(*options, "--specs", "tick:7")
    assert (
        refused.returncode,
        refused.stderr.count("tickbus: service 'bars' is running with other feeds, symbols or specs"),
    ) == (
        2,
        1,
    )
    first.kill()
    assert start(*options, "--specs", "tick:7").wait_ready().stop() == 0, (
        "a killed process is waited for, not considered alive"
    )


def test_feed_and_service_cannot_share_a_name(redis_server: RedisServer, start: Start) -> None:
    """They would have the same fences, and each would fence off the other."""
    gateway = start(
        "gateway", "--feed", "json", "--symbols", "AAPL", "--url", f"ws://127.0.0.1:{free_port()}",
        "--redis", redis_server.url,
    )  # fmt: skip
    gateway.wait_for("cannot connect to")
    refused = tickbus("bars", "--name", "json", "--redis", redis_server.url)
    assert (
        refused.returncode,
        refused.stderr.count("tickbus: name 'json' is used by a feed of bus 'tickbus'; use another name"),
    ) == (2, 1)
    assert gateway.get("/healthz")[0] == 200
    assert start("bars", "--redis", redis_server.url).wait_ready().stop() == 0
    refused = tickbus(
        "gateway", "--feed", "json", "--name", "bars", "--symbols", "AAPL", "--redis", redis_server.url
    )
    assert (
        refused.returncode,
        refused.stderr.count(
            "tickbus: name 'bars' is used by a service of bus 'tickbus'; use another --name"
        ),
    ) == (2, 1)


def test_only_one_of_two_services_for_the_same_bars_started_together_survives(
    redis_server: RedisServer, start: Start
) -> None:
    both = [start("bars", "--redis", redis_server.url, "--name", name) for name in ("one", "other")]
    until(lambda: any(service.process.poll() is not None for service in both), 20, "one ends")
    ended = next(service for service in both if service.process.poll() is not None)
    assert ended.process.returncode == 2
    assert "is running and writes the same streams" in ended.output


def test_symbol_unknown_to_the_vendor_is_shown_as_silent(redis_server: RedisServer, start: Start) -> None:
    simulator = start("simulate", "--symbols", "BTCUSDT", "--rate", "500")
    url = simulator.wait_for(r"listening on (ws://\S+)")[1]
    gateway = start(
        "gateway", "--feed", "binance", "--url", url, "--symbols", "BTC-USDT,BTC-USTD",
        "--redis", redis_server.url,
    ).wait_ready()  # fmt: skip
    until(lambda: gateway.metric("tickbus_feed_symbols_silent") == 1, 20, "one symbol ticks")
    assert gateway.metric("tickbus_feed_symbols_wanted") == 2
    heads = {
        name: msgpack.unpackb(head)
        for key in redis_server.client.scan_iter("tickbus:{*}:last")
        for name, head in redis_server.client.hgetall(key).items()
    }
    assert heads[b"trade:binance:BTC-USTD"][0] == "0-0"
    assert heads[b"trade:binance:BTC-USTD"][3] is None
    assert heads[b"trade:binance:BTC-USDT"][3][0] == "BTC-USDT"
    status = tickbus("status", "--json", "--redis", redis_server.url)
    (feed,) = json.loads(status.stdout)["feeds"]
    assert (feed["silent"], feed["silent_streams"]) == (1, ["trade:binance:BTC-USTD"])


@pytest.mark.parametrize("feed", ["binance", "alltick", "json"])
def test_unreadable_frames_are_counted_and_reported(
    feed: str, redis_server: RedisServer, start: Start, tmp_path: Path
) -> None:
    """One fault after the other on a live connection: none of them ends it, and every gap is reported."""
    ledger = tmp_path / "sent.jsonl"
    simulator = start("simulate", "--rate", "1000", "--json-quotes", "--ledger", str(ledger))
    url = simulator.wait_for(r"listening on (ws://\S+)")[1]
    gateway = start(
        "gateway", "--feed", feed, "--url", url, "--token", "any", "--symbols", "GOLD",
        "--kinds", "trade,quote", "--redis", redis_server.url,
    ).wait_ready()  # fmt: skip

    def wait_published() -> None:
        before = {
            kind: gateway.metric("tickbus_ticks_published_total", kind=kind) for kind in ("trade", "quote")
        }
        until(
            lambda: all(
                gateway.metric("tickbus_ticks_published_total", kind=kind) > before[kind] for kind in before
            ),
            10,
            "both kinds flow",
        )

    def rejected(reason: str, count: int) -> bool:
        return gateway.metric("tickbus_feed_rejected_total", reason=reason) == count

    wait_published()
    for fault, reason, count in (
        ("corrupt=1 kind=trade", "field", 1), ("corrupt=1 kind=quote", "field", 2),
        ("garbage=2", "garbage", 2), ("binary=3", "garbage", 5), ("huge=10MB", "oversize", 1),
    ):  # fmt: skip
        simulator.send_line(fault)
        until(partial(rejected, reason, count), 10, fault)
        wait_published()
    until(lambda: gateway.metric("tickbus_backlog_ticks") == 0, 10, "everything is stored")
    assert gateway.metric("tickbus_feed_reconnects_total") == 0
    assert gateway.get("/healthz")[0] == 200
    counted = gateway.metric("tickbus_gaps_total", kind="rejected")
    assert simulator.stop() == 0
    assert gateway.stop() == 0
    assert "Traceback" not in gateway.output

    entries = {kind: _entries(redis_server, f"{kind}:{feed}:GOLD") for kind in ("trade", "quote")}
    corrupt = {line["kind"]: line["id"] for line in read_ledger(ledger) if line.get("fault") == "corrupt"}
    gaps = {
        kind: [_gap(message) for field, message in rows if field == "g" and message[2] != DISCONNECT]
        for kind, rows in entries.items()
    }
    exact = [(REJECTED, corrupt["trade"], corrupt["trade"], 1)]
    assert gaps["trade"][:1] == (exact if feed == "binance" else [(REJECTED, None, None, 1)])
    assert [gap for gap in gaps["quote"] if gap[3] == 1] == [(REJECTED, None, None, 1)]
    assert counted == sum(map(len, gaps.values()))
    # garbage may have contained ticks of any stream; with ids nothing is missing, without them it is unknown
    unknown = {kind: [gap for gap in rows if gap[3] is None] for kind, rows in gaps.items()}
    assert all(
        3 <= len(rows) <= 6 and set(rows) == {(REJECTED, None, None, None)}
        for kind, rows in unknown.items()
        if (feed, kind) != ("binance", "trade")
    )
    if feed == "binance":
        assert gaps["trade"] == exact
        ids = [int(message[4]) for field, message in entries["trade"] if field == "t"]
        assert sorted([*ids, int(corrupt["trade"])]) == list(range(ids[0], ids[-1] + 1))


DISCONNECT, REJECTED = 0, 5


def _entries(server: RedisServer, name: str) -> list[tuple[str, list[Any]]]:
    (key,) = server.client.scan_iter(f"tickbus:{{*}}:{name}")
    return [
        (field.decode(), msgpack.unpackb(payload))
        for _, fields in server.client.xrange(key)
        for field, payload in fields.items()
    ]


def _gap(message: list[Any]) -> tuple[Any, ...]:
    return message[2], message[5], message[6], message[7]


def test_usage_lists_every_command() -> None:
    for args in ((), ("--help",), ("help",)):
        answer = tickbus(*args)
        assert (answer.returncode, answer.stderr) == (0, "")
        assert all(
            re.search(rf"^  {name} +{re.escape(command.summary)}$", answer.stdout, re.MULTILINE)
            for name, command in COMMANDS.items()
        )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_complete(command: str) -> None:
    answer = tickbus(command, "--help", COLUMNS="120")
    assert (answer.returncode, answer.stderr) == (0, "")
    text = " ".join(answer.stdout.split())
    module = _module(command)
    positional = {name: metavar for name, _, metavar in module.POSITIONALS}
    assert " ".join(module.ABOUT.split()) in text
    assert "TICKBUS_METRICS_PORT" in text
    for option in declared_options(module.Options):
        shown = positional.get(option.name, option.flag)
        default = f" (default {option.default_text()})" if option.default_text() else ""
        assert re.search(
            rf"{re.escape(shown)}( \S+)? {re.escape(' '.join(option.option.help.split()) + default)}", text
        ), option.flag
    assert not [line for line in answer.stdout.splitlines() if len(line) > 130 or line != line.rstrip()]
    assert "None" not in answer.stdout
