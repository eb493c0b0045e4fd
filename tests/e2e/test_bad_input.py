"""Whatever is wrong: one clear line and the right exit code where a part ends; where it lives on, it counts, tells and works."""

import asyncio
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import msgpack
import pytest
from support.processes import Part, read_ledger, tickbus
from support.redis_server import RedisServer, free_port
from support.waiting import until
from websockets.asyncio.server import ServerConnection, serve

from services.cli import COMMANDS, _module
from tickbus.service.load_options import declared

Start = Callable[..., Part]

GATEWAY = "gateway --feed binance --symbols BTC-USDT --url ws://127.0.0.1:9 --metrics-port 0"


@dataclass(frozen=True)
class Wrong:
    """A command that must end with `code` and one line that `says`. {places} are filled in by the fixture of that name."""

    command: str
    code: int
    says: str
    file: str = ""
    """Content of the file {file}."""


COMMAND_LINES = [
    Wrong("bogus", 2, "unknown command 'bogus'; there are demo, gateway, bars, recorder, simulate, tail, status, replay"),
    Wrong("gateway", 2, "--feed is missing (also TICKBUS_FEED): the vendor's protocol"),
    Wrong("gateway --feed reuters --symbols A", 2, "unknown feed 'reuters': expected one of alltick, binance, json"),
    Wrong("gateway --feed json", 2, "--symbols is missing"),
    Wrong("gateway --feed json --symbols btc-usdt", 2, "symbol 'btc-usdt': use A-Z 0-9 . _ -"),
    Wrong("gateway --feed json --symbols BTC/USDT", 2, "--symbol-map for other spellings"),
    Wrong("gateway --feed json --symbols @{none}", 2, "--symbols {none}: No such file or directory"),
    Wrong("gateway --feed binance --symbols BTC-USDT,BTCUSDT", 2, "are both 'BTCUSDT' at the vendor"),
    Wrong("gateway --feed json --symbols A --symbol-map {file}", 2, "line 1: 'A' is not of the form canonical = vendor", "A"),
    Wrong("gateway --feed json --symbols A --kinds trade,depth", 2, "--kinds depth: this feed has trade, quote"),
    Wrong("gateway --feed json --symbols A --kinds ,", 2, "--kinds: name trade, quote or both"),
    Wrong("gateway --feed json --symbols A --json-fields cost=p", 2, "--json-fields cost=p: write ours=theirs"),
    Wrong("gateway --feed json --symbols A --name My.Feed", 2, "name 'My.Feed': use a-z 0-9 _ -"),
    Wrong("gateway --feed json --symbols A --session always", 2, "invalid trading hours 'always': expected e.g. 'mon-fri 09:30-16:00 America/New_York'"),
    Wrong("gateway --feed json --symbols A --silence 5", 2, "--silence: '5' is no duration; write it like 500ms, 2s"),
    Wrong("gateway --feed json --symbols A --max-frame 1", 2, "--max-frame: 1B is out of range; use at least 1KB"),
    Wrong("gateway --feed json --symbols A --url http://u:secret@h?token=secret", 2, "--url http://***@h: write it as ws://host:port or wss://host"),
    Wrong("gateway --feed json --symbols A --url ws://[::1", 2, "--url ws://[::1: Invalid IPv6 URL"),
    Wrong("gateway --feed json --symbols A --url ws://h:0", 2, "--url ws://h:0: write it as ws://host:port or wss://host"),
    Wrong("gateway --feed alltick --symbols A --token s3cret --url ws://me@h", 2, "--url ws://***@h: write user and password as user:password@"),
    Wrong("gateway --feed alltick --symbols A --token s3cret --url ws://h/p#f", 2, "--url ws://h/p#f: write user and password as"),
    Wrong("gateway --feed json --symbols A --max-connection-age 1h", 2, "--max-connection-age: a connection of feed json cannot be replaced"),
    Wrong("gateway --feed binance --symbols A-B --json-fields price=p", 2, "--json-fields is an option of json, not of binance (--feed); leave it out"),
    Wrong("gateway --feed json --symbols A --json-fields price=volume", 2, "--json-fields price=volume: Multiple fields rename to the same name"),
    Wrong("gateway --feed json --symbols A --url ws://h:99999", 2, "--url ws://h:99999: Port out of range 0-65535"),
    Wrong("gateway --feed json --symbols A --token x --token-file {file}", 2, "--token, --token-file: give the value or the file that holds it, not both"),
    Wrong("gateway --feed json --symbols A --token-file {none}", 2, "--token-file: cannot read {none}: No such file or directory"),
    Wrong("gateway --feed json --symbols A --bogus 1", 2, "unrecognized arguments: --bogus 1; see tickbus gateway --help"),
    Wrong("gateway --feed json --symbols A --metrics-port 70000", 2, "--metrics-port: 70000 is out of range; use at least -1 and at most 65535"),
    Wrong("gateway --feed json --symbols A --log-level loud", 2, "--log-level: 'loud' is none of debug, info, warning, error"),
    Wrong("bars --specs hourly", 2, "bar spec 'hourly': write time:<n>s|m|h|d"),
    Wrong("bars --specs ,", 2, "--specs: name what to build"),
    Wrong("bars --specs time:500ms", 2, "a time bar is a whole number of s, m, h or d"),
    Wrong("bars --from yesterday", 2, "'yesterday' is no time; write it like 2024-08-09T13:30:00Z"),
    Wrong("bars --name Bars", 2, "name 'Bars': use a-z 0-9 _ -"),
    Wrong("recorder --kinds depth", 2, "--kinds depth: there are trade, quote, bar"),
    Wrong("recorder --kinds ,", 2, "--kinds: name what to record"),
    Wrong("recorder --flush-interval 1ms --data-dir {folder}", 2, "--flush-interval: 1ms is out of range; use at least 10ms"),
    Wrong("recorder --data-dir {file}/below", 2, "--data-dir {file}/below: Not a directory; name a folder"),
    Wrong("recorder --data-dir /proc/tickbus", 2, "--data-dir /proc/tickbus: No such file or directory; name a folder"),
    Wrong("simulate --source tape", 2, "--source tape: use synthetic, capture:FILE"),
    Wrong("simulate --speed fast", 2, "--speed fast: use a number like 1, 10 or 0.5, or max"),
    Wrong("simulate --faults explode=1", 2, "unknown word 'explode'"),
    Wrong("tail --kind depth", 2, "--kind: 'depth' is none of trade, quote, bar, signal, gap"),
    Wrong("tail btc", 2, "symbol 'btc': use A-Z 0-9 . _ -"),
    Wrong("status --json=maybe", 2, "--json: 'maybe' is neither true nor false"),
    Wrong("replay", 2, "DATA_DIR is missing"),
    Wrong("replay {none}", 2, "DATA_DIR {none}: there is no such folder"),
    Wrong("demo --seconds 0", 2, "--seconds: 0 is out of range; use at least 1"),
    # files
    Wrong("gateway --config {none}", 2, "--config {none}: No such file or directory"),
    Wrong("gateway --config {file}", 2, "{file} is no TOML file: Expected ']' at the end of a table declaration (at line 1, column 9)", "[gateway\n"),
    Wrong("gateway --config {file}", 2, "unknown key 'redsi' at the top; did you mean 'redis'?", 'redsi = "x"'),
    Wrong("gateway --config {file}", 2, "unknown key 'symbols' at the top; a part's own options stand in its table", 'symbols = "A"'),
    Wrong("gateway --config {file}", 2, "unknown table [gatewy]; did you mean 'gateway'?", "[gatewy]"),
    Wrong("gateway --config {file}", 2, "gateway is a part: its options stand below a line [gateway]", "gateway = 1"),
    Wrong("gateway --config {file}", 2, "unknown key 'feeed' in [gateway]; did you mean 'feed'?", '[gateway]\nfeeed = "json"'),
    Wrong("gateway --config {file}", 2, "unknown key 'grcae' in [bars]; did you mean 'grace'?", '[bars]\ngrcae = "2s"'),
    Wrong("bars --config {file}", 2, "{file}: grace: '5' is no duration; write it like 500ms, 2s", "[bars]\ngrace = 5"),
    Wrong("bars --config {file}", 2, "{file}: metrics_port: 1.5 is no whole number", "[bars]\nmetrics-port = 1.5"),
    Wrong("bars --config {file}", 2, "{file}: specs: 1 is no text; put it in quotes", "[bars]\nspecs = [1]"),
    # Redis
    *(
        Wrong(f"{command} --redis redis://127.0.0.1:{{nobody}}/0", 3, "no Redis at redis://127.0.0.1:{nobody}/0: ")
        for command in (GATEWAY, "bars", "recorder --data-dir {folder}", "tail", "status", "replay {recorded}")
    ),
    *(
        wrong
        for command in (GATEWAY, "bars", "recorder --data-dir {folder}", "replay {recorded}")
        for wrong in (
            Wrong(f"{command} --redis {{evicting}}", 3, "mend it with: redis-cli CONFIG SET maxmemory-policy noeviction"),
            Wrong(f"{command} --redis {{well}} --prefix other", 2, "the bus 'other' has 16 shards, this process is configured for 64; use --shards 16"),
            Wrong(f"{command} --redis {{well}} --metrics-port {{well_port}}", 2, "--metrics-port {well_port}: cannot listen there: Address already in use"),
        )
    ),
    *(
        wrong
        for command in (GATEWAY, "status")
        for wrong in (
            Wrong(f"{command} --redis {{locked}}", 3, "Redis wants a password; put it into the URL: redis://:password@host:port/0"),
            Wrong(f"{command} --redis redis://:wrong@127.0.0.1:{{locked_port}}/0", 3, "refuses the login: "),
            Wrong(f"{command} --redis http://127.0.0.1/0", 2, "Redis URL must specify one of the following schemes (redis://, rediss://, unix://)"),
            Wrong(f"{command} --redis redis://127.0.0.1/ticks", 2, "the database 'ticks' is no number; write redis://host:port/0"),
            Wrong(f"{command} --redis {{well}} --prefix a{{{{b", 2, "prefix 'a{{b': use letters, digits . _ - :"),
        )
    ),
    Wrong(GATEWAY + " --redis {well} --prefix newer", 2, "the bus 'newer' has schema 9, this version of tickbus writes 1"),
    Wrong("bars --redis redis://:p@secret@127.0.0.1:{nobody}/0", 3, "no Redis at redis://***@127.0.0.1:{nobody}/0: "),
    # the vendor
    Wrong(GATEWAY.replace("ws://127.0.0.1:9", "ws://127.0.0.1:{http}/404") + " --redis {well}", 4, "refuses the connection for good: HTTP 404"),
    Wrong(GATEWAY.replace("ws://127.0.0.1:9", "ws://127.0.0.1:{http}/401") + " --redis {well}", 4, "refuses the connection for good: HTTP 401"),
    Wrong(
        "gateway --feed alltick --symbols AAPL.US --url {simulator} --token wrong --redis {well}", 4,
        "refuses the connection for good: HTTP 401",
    ),
    Wrong("gateway --feed alltick --symbols GOLD --url {simulator} --redis {well}", 4, "check --url and --token"),
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
    simulator = Part(folder / "simulate.log", "simulate", "--token", "right")
    _record_something(servers["well"], folder)
    yield {
        **{name: server.url for name, server in servers.items()}, "locked_port": str(servers["locked"].port), "well_port": str(servers["well"].port),
        "none": str(folder / "none"), "folder": str(folder / "data"), "recorded": str(folder / "recorded"), "nobody": str(free_port()), "http": str(web.server_address[1]),
        "simulator": simulator.wait_for(r"listening on (ws://\S+)")[1], "files": str(folder),
    }  # fmt: skip
    simulator.close()
    web.shutdown()
    web.server_close()
    for server in servers.values():
        server.close()


def _record_something(server: RedisServer, folder: Path) -> None:
    """A few trades in files, for replay."""
    simulator = Part(folder / "market.log", "simulate")
    url = simulator.wait_for(r"listening on (ws://\S+)")[1]
    gateway = Part(
        folder / "gateway.log",
        "gateway",
        "--feed",
        "json",
        "--url",
        url,
        "--symbols",
        "A",
        "--redis",
        server.url,
        "--prefix",
        "first",
    )
    recorder = Part(
        folder / "recorder.log",
        "recorder",
        "--data-dir",
        str(folder / "recorded"),
        "--flush-interval",
        "50ms",
        "--redis",
        server.url,
        "--prefix",
        "first",
    )
    until(lambda: recorder.metric("tickbus_recorder_rows_total") > 0, 30, "rows are recorded")
    for part in (recorder, gateway, simulator):
        part.stop()


class _Refuses(http.server.BaseHTTPRequestHandler):
    """Answers /404 with 404, and so on."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.strip("/")))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def answers(places: dict[str, str]) -> Iterator[dict[Wrong, "Future[CompletedProcess[str]]"]]:
    """All commands, four at a time: one after the other they would take a minute."""
    with ThreadPoolExecutor(4) as pool:
        yield {wrong: pool.submit(_run, wrong, number, places) for number, wrong in enumerate(COMMAND_LINES)}


def _run(wrong: Wrong, number: int, places: dict[str, str]) -> "CompletedProcess[str]":
    file = Path(places["files"]) / f"file{number}"
    file.write_text(wrong.file)
    args = [part.format(**places, file=file) for part in wrong.command.split()]
    return tickbus(*args, timeout=60, TICKBUS_LOG_LEVEL="warning")


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "wrong"),
    list(enumerate(COMMAND_LINES)),
    ids=[f"{it.command[:50]} {it.says[:30]}" for it in COMMAND_LINES],
)
def test_what_is_wrong_is_said_in_one_line(
    number: int, wrong: Wrong, answers: dict[Wrong, "Future[CompletedProcess[str]]"], places: dict[str, str]
) -> None:
    answer = answers[wrong].result()
    assert re.fullmatch(r"tickbus: .+\n", answer.stderr), answer.stderr
    assert wrong.says.format(**places, file=Path(places["files"]) / f"file{number}") in answer.stderr
    assert answer.returncode == wrong.code
    assert answer.stdout == "" or wrong.command.startswith("simulate")
    assert "secret" not in answer.stderr


async def test_a_token_that_is_refused_after_the_handshake(redis_server: RedisServer) -> None:
    async def refuse(connection: ServerConnection) -> None:
        request = json.loads(await connection.recv())
        await connection.send(
            json.dumps(
                {
                    "ret": 401,
                    "msg": "token is invalid",
                    "cmd_id": request["cmd_id"] + 1,
                    "seq_id": 1,
                    "trace": "",
                }
            )
        )
        await connection.wait_closed()

    async with serve(refuse, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        args = (
            "gateway",
            "--feed",
            "alltick",
            "--symbols",
            "GOLD",
            "--url",
            url,
            "--token",
            "old",
            "--redis",
            redis_server.url,
        )
        answer = await asyncio.to_thread(tickbus, *args)
    assert answer.returncode == 4
    assert (
        answer.stderr.count(
            "tickbus: AllTick answers 401 token is invalid: the token is not valid; check --token, --url"
        )
        == 1
    )
    assert "Traceback" not in answer.stderr


def test_nobody_listens_at_the_url_until_somebody_does(redis_server: RedisServer, start: Start) -> None:
    port = free_port()
    gateway = start(
        "gateway",
        "--feed",
        "json",
        "--symbols",
        "AAPL",
        "--url",
        f"ws://127.0.0.1:{port}",
        "--redis",
        redis_server.url,
    )
    gateway.wait_for(rf"(?s)(no connection to ws://127\.0\.0\.1:{port}: .*Connect call failed.*){{2}}")
    assert gateway.get("/healthz")[0] == 200
    assert gateway.get("/readyz") == (503, "no subscribed upstream connection\n")
    assert gateway.metric("tickbus_feed_connected") == 0
    assert "Traceback" not in gateway.output
    start("simulate", "--port", str(port))
    gateway.ready()
    until(lambda: gateway.metric("tickbus_ticks_published_total") > 0, 20, "ticks flow")
    assert gateway.metric("tickbus_feed_reconnects_total", reason="connect") >= 2
    assert gateway.metric("tickbus_gaps_total") == 0
    assert gateway.stop() == 0


def test_two_services_do_not_write_the_same_bars(redis_server: RedisServer, start: Start) -> None:
    options = ("bars", "--redis", redis_server.url)
    first = start(*options, "--specs", "time:1s,time:1m").ready()
    replica = start(*options, "--specs", "time:1s,time:1m").ready()
    other = start(*options, "--name", "hourly", "--specs", "time:1h").ready()
    refused = tickbus(*options, "--name", "mine", "--specs", "time:60s,tick:9")
    assert (
        refused.returncode,
        refused.stderr.count(
            "tickbus: the service 'bars' is running and writes the same streams; replicas share a --name"
        ),
    ) == (2, 1)
    assert [one.stop() for one in (first, replica, other)] == [0, 0, 0]
    assert start(*options, "--name", "mine", "--specs", "time:60s,tick:9").ready().stop() == 0


def test_replicas_share_their_specs(redis_server: RedisServer, start: Start) -> None:
    """What one of them did of a shard, the other would take for done."""
    options = ("bars", "--redis", redis_server.url, "--lease-ttl", "500ms")
    first = start(*options, "--specs", "time:1s").ready()
    refused = tickbus(*options, "--specs", "tick:7")
    assert (
        refused.returncode,
        refused.stderr.count(
            "tickbus: the service 'bars' is running with another selection of feeds, symbols or specs"
        ),
    ) == (
        2,
        1,
    )
    first.kill()
    assert start(*options, "--specs", "tick:7").ready().stop() == 0, (
        "who was killed is waited for, not taken for alive"
    )


def test_a_feed_and_a_service_do_not_share_a_name(redis_server: RedisServer, start: Start) -> None:
    """Their fences would be the same, and each would throw the other out."""
    gateway = start(
        "gateway",
        "--feed",
        "json",
        "--symbols",
        "AAPL",
        "--url",
        f"ws://127.0.0.1:{free_port()}",
        "--redis",
        redis_server.url,
    )
    gateway.wait_for("no connection to")
    refused = tickbus("bars", "--name", "json", "--redis", redis_server.url)
    assert (
        refused.returncode,
        refused.stderr.count("tickbus: 'json' is a feed of the bus 'tickbus'; a service needs another name"),
    ) == (2, 1)
    assert gateway.get("/healthz")[0] == 200
    assert start("bars", "--redis", redis_server.url).ready().stop() == 0
    refused = tickbus(
        "gateway", "--feed", "json", "--name", "bars", "--symbols", "AAPL", "--redis", redis_server.url
    )
    assert (
        refused.returncode,
        refused.stderr.count(
            "tickbus: 'bars' is a service of the bus 'tickbus'; a feed needs another --name"
        ),
    ) == (2, 1)


def test_of_two_services_for_the_same_bars_that_start_together_not_both_run(
    redis_server: RedisServer, start: Start
) -> None:
    both = [start("bars", "--redis", redis_server.url, "--name", name) for name in ("one", "other")]
    until(lambda: any(part.process.poll() is not None for part in both), 20, "one ends")
    ended = next(part for part in both if part.process.poll() is not None)
    assert ended.process.returncode == 2
    assert "is running and writes the same streams" in ended.output


def test_a_symbol_that_the_vendor_does_not_know_is_shown_as_silent(
    redis_server: RedisServer, start: Start
) -> None:
    simulator = start("simulate", "--symbols", "BTCUSDT", "--rate", "500")
    url = simulator.wait_for(r"listening on (ws://\S+)")[1]
    gateway = start(
        "gateway",
        "--feed",
        "binance",
        "--url",
        url,
        "--symbols",
        "BTC-USDT,BTC-USTD",
        "--redis",
        redis_server.url,
    ).ready()
    until(lambda: gateway.metric("tickbus_feed_symbols_silent") == 1, 20, "one is heard")
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
def test_frames_that_cannot_be_read_are_counted_and_told(
    feed: str, redis_server: RedisServer, start: Start, tmp_path: Path
) -> None:
    """One fault after the other on a live connection: none of them ends it, and no hole is silent."""
    ledger = tmp_path / "sent.jsonl"
    simulator = start("simulate", "--rate", "1000", "--json-quotes", "--ledger", str(ledger))
    url = simulator.wait_for(r"listening on (ws://\S+)")[1]
    gateway = start(
        "gateway",
        "--feed",
        feed,
        "--url",
        url,
        "--token",
        "any",
        "--symbols",
        "GOLD",
        "--kinds",
        "trade,quote",
        "--redis",
        redis_server.url,
    ).ready()

    def goes_on() -> None:
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

    goes_on()
    for fault, reason, number in (
        ("corrupt=1 kind=trade", "field", 1), ("corrupt=1 kind=quote", "field", 2), ("garbage=2", "garbage", 2), ("binary=3", "garbage", 5),
        ("huge=10MB", "oversize", 1),
    ):  # fmt: skip
        simulator.say(fault)
        until(
            lambda reason=reason, number=number: (
                gateway.metric("tickbus_feed_rejected_total", reason=reason) == number
            ),
            10,
            fault,
        )
        goes_on()
    until(lambda: gateway.metric("tickbus_backlog_ticks") == 0, 10, "all is stored")
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
    # garbage may have held ticks of any stream; with ids nothing is missing, without them nobody can know
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


def _entries(server: RedisServer, name: str) -> list[tuple[str, list[object]]]:
    (key,) = server.client.scan_iter(f"tickbus:{{*}}:{name}")
    return [
        (field.decode(), msgpack.unpackb(payload))
        for _, fields in server.client.xrange(key)
        for field, payload in fields.items()
    ]


def _gap(message: list[object]) -> tuple[object, ...]:
    return message[2], message[5], message[6], message[7]


def test_the_usage_names_every_part() -> None:
    for args in ((), ("--help",), ("help",)):
        answer = tickbus(*args)
        assert (answer.returncode, answer.stderr) == (0, "")
        assert all(
            re.search(rf"^  {name} +{re.escape(part.line)}$", answer.stdout, re.MULTILINE)
            for name, part in COMMANDS.items()
        )


@pytest.mark.parametrize("part", COMMANDS)
def test_the_help_of_a_part_is_complete(part: str) -> None:
    answer = tickbus(part, "--help", COLUMNS="120")
    assert (answer.returncode, answer.stderr) == (0, "")
    text = " ".join(answer.stdout.split())
    module = _module(part)
    positional = {name: metavar for name, _, metavar in module.POSITIONALS}
    assert " ".join(module.ABOUT.split()) in text
    assert "TICKBUS_METRICS_PORT" in text
    for option in declared(module.Options):
        shown = positional.get(option.name, option.flag)
        default = f" (default {option.shown_default()})" if option.shown_default() else ""
        assert re.search(
            rf"{re.escape(shown)}( \S+)? {re.escape(' '.join(option.option.help.split()) + default)}", text
        ), option.flag
    assert not [line for line in answer.stdout.splitlines() if len(line) > 130 or line != line.rstrip()]
    assert "None" not in answer.stdout
