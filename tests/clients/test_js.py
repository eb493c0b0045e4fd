"""The JavaScript client reads what the bus holds, exactly, over the end of connections, relays and Redis."""

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from relay.test_server import TOKEN, token_row
from support.javascript import CLIENT, NODE, NPM, Script
from support.processes import Process
from support.redis_server import RedisServer, free_port
from support.relay import start_relay
from support.waiting import until_async
from support.writing import Writer, trade

from tickbus.protocol.json_form import json_object
from tickbus.protocol.messages import Bar, Flag, Gap, GapKind, Message, Quote, Side, Signal, StreamKind, Trade
from tickbus.protocol.names import Stream
from tickbus.version import VERSION

Start = Callable[..., Process]
Run = Callable[..., Script]
STREAM = "trade:test:A"
NS = 1_795_847_345_011_000_001
"""Exceeds 2^53: no JavaScript number holds it."""
TIMES = ("ts_event", "ts_recv", "start", "end", "from_ts", "to_ts", "episode")


@pytest.fixture
async def writer(redis_server: RedisServer) -> AsyncIterator[Writer]:
    opened = await Writer(redis_server.url).open()
    yield opened
    opened.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A function that starts a script; the test's end kills it."""
    scripts: list[Script] = []

    def begin(text: str, node: Path = NODE, **given: Any) -> Script:
        folder = tmp_path / f"script-{len(scripts)}"
        folder.mkdir()
        scripts.append(Script(folder, text, node, **given))
        return scripts[-1]

    yield begin
    for script in scripts:
        script.close()


async def end_of(script: Script) -> Any:
    return await asyncio.to_thread(script.result)


async def heard(script: Script, count: int) -> list[Any]:
    return await asyncio.to_thread(script.hear, count)


async def write(writer: Writer, *messages: tuple[Stream, Message]) -> list[Any]:
    """Commit messages in one transaction. Return them as a script says them."""
    entries = [writer.entry(*each) for each in messages]
    await writer.publisher.commit(writer.transaction(entries))
    return [
        element_of(stream, str(entry.id), message)
        for entry, (stream, message) in zip(entries, messages, strict=True)
    ]


def element_of(stream: Stream, id: str, message: Message) -> Any:
    row = json.loads(json_object(stream, id, message, "cursor"))
    return {name: f"{value}n" if name in TIMES else value for name, value in row.items()}


def gap(kind: GapKind = GapKind.STALE, **more: Any) -> Gap:
    return Gap(StreamKind.TRADE, "gateway", kind, NS, NS + 1, symbol="A", **more)


def bar(start: int) -> Bar:
    return Bar("time:1m", start, NS + 99, "1", "2", "1", "2", "3", "4", None, 2, "1", "2", symbol="A")


TRADES = Stream("trade", "test", "A")
TRICKY = 'so "start":1795847345011000001,"end":5, \\"ts_event\\":9007199254740993} he said'


def programs() -> list[Path]:
    """The Node of the lock, and that of the machine if it has a WebSocket."""
    found = [NODE]
    try:
        done = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
        if tuple(map(int, done.stdout.strip("v\n").split(".")))[:2] >= (20, 10):
            found.append(Path("node"))
    except (OSError, subprocess.CalledProcessError):
        pass
    return found


@pytest.mark.parametrize("node", programs(), ids=lambda node: node.parent.name or "machine")
async def test_values_are_those_of_the_bus(
    redis_server: RedisServer, start: Start, writer: Writer, run: Run, node: Path
) -> None:
    kinds = {
        "trade": await write(
            writer,
            (TRADES, Trade("A", "12345678901234567890.10", "0.10", Side.BUY, "9007199254740993", NS, NS + 1)),
            (TRADES, gap(GapKind.SEQUENCE, from_id="9007199254740993", to_id="9007199254740994", count=2)),
            (TRADES, Trade("A", "1", "2", Side.SELL, None, 0, NS, "0.9", "1.1", Flag.OFF_BOOK)),
        ),
        "quote": await write(
            writer, (Stream("quote", "test", "A"), Quote("A", "1.5", "2", None, None, NS, NS + 7))
        ),
        "bar": await write(
            writer,
            (
                Stream("bar", "test", "A", "time:1m"),
                bar(NS),
            ),
        ),
        "signal": await write(
            writer, (Stream("signal", "test", "A"), Signal("s", "1", "2", "1m", TRICKY, "A", NS))
        ),
    }
    _, url = start_relay(start, redis_server.url)
    script = run(
        """
        const bus = connect(given.url);
        for (const [kind, count] of Object.entries(given.counts)) {
          say(await take(bus.read(kind, { from: "start" }), count));
        }
        bus.close();
        """,
        node,
        url=url,
        counts={kind: len(expected) for kind, expected in kinds.items()},
    )
    await end_of(script)
    assert script.said == list(kinds.values())


async def test_http_answers_are_those_of_the_bus(
    redis_server: RedisServer, start: Start, writer: Writer, run: Run
) -> None:
    trades = await write(writer, *((TRADES, trade(number)) for number in (1, 2, 3)))
    stream = Stream("bar", "test", "A", "time:1m")
    start_of = range(NS, NS + 3)
    bars = await write(
        writer,
        *((stream, bar(begin)) for begin in start_of),
    )
    _, url = start_relay(start, redis_server.url)
    script = run(
        """
        const bus = connect(["http://127.0.0.1:1", given.url]);  // the first does not answer
        say(await bus.symbols({ kind: "trade", symbols: ["A"] }));
        say(await bus.snapshot("trade", { symbols: ["A", "B*"] }));
        const first = await bus.history("trade:test:A", { limit: 2 });
        say([first, await bus.history("trade:test:A", { after: first.next, limit: 2 })]);
        const page = await bus.bars({ symbol: "A", limit: 2 });
        say([page, await bus.bars({ symbol: "A", from: page.next, to: page.next + 1n })]);
        say(await bus.status());
        const bad = bus.bars({ symbol: "A", spec: "nonsense" });
        say(await bad.catch(({ status, message }) => [status, message]));
        """,
        url=url,
    )
    await end_of(script)
    symbols, snapshot, history, pages, status, refused = script.said
    assert [row["stream"] for row in symbols] == [STREAM]
    assert snapshot == {"data": trades[2:], "cursor": {STREAM: trades[2]["cursor"]}}
    assert history == [
        {"data": trades[:2], "next": trades[1]["cursor"]},
        {"data": trades[2:], "next": None},
    ]
    assert pages == [{"data": bars[:2], "next": f"{NS + 2}n"}, {"data": bars[2:], "next": None}]
    assert status["up"] is True
    assert refused[0] == 400
    assert "spec" in refused[1]


async def test_read_goes_on_from_a_snapshot_and_from_its_own_cursor(
    redis_server: RedisServer, start: Start, writer: Writer, run: Run
) -> None:
    await writer.write(1, 2)
    _, url = start_relay(start, redis_server.url)
    script = run(
        """
        const bus = connect(given.url);
        const snapshot = await bus.snapshot("trade", { symbols: ["A"] });
        const read = bus.read("trade", { symbols: ["A"], from: snapshot.cursor });
        await read.opened();
        say("opened");
        const elements = await take(read, 2);
        say(read.cursor);
        read.close();
        elements.push(...(await take(bus.read("trade", { symbols: ["A"], from: read.cursor }), 2)));
        say(elements);
        bus.close();
        """,
        url=url,
    )
    await heard(script, 1)
    # the vendor's ids began anew, which is no reset of the stream
    messages = trade(3), gap(GapKind.RESET), trade(5), trade(6)
    expected = await write(writer, *((TRADES, message) for message in messages))
    elements = await end_of(script)
    assert elements == expected
    history = redis_server.client.get(writer.keys.era(writer.keys.shard("A")))
    assert history is not None
    assert script.said[1] == {STREAM: f"{elements[1]['cursor']}@{history.decode()}"}


async def written_while(writer: Writer, script: Script) -> Any:
    """Write numbers without pause until a script ends. Return what it said last."""
    running = asyncio.create_task(end_of(script))
    number = 0
    while not running.done():
        await writer.write(*range(number + 1, number + 51))
        number += 50
        await asyncio.sleep(0.01)  # a market's pace: the script must be able to read it all
    return await running


@pytest.mark.parametrize("where", ["another", "same port"])
async def test_killed_relay_leaves_neither_hole_nor_double(
    redis_server: RedisServer, start: Start, writer: Writer, run: Run, where: str
) -> None:
    relay, url = start_relay(start, redis_server.url, "--port", str(free_port()))
    urls = [url] if where == "same port" else [url, start_relay(start, redis_server.url)[1]]
    script = run(
        """
        const bus = connect(given.urls, { onState });
        const read = bus.read("trade", { symbols: ["A"], from: "start" });
        const elements = await take(read, 500);
        say("kill");
        const connections = () => states.filter(({ state }) => state === "open").length;
        while (connections() < 2) elements.push(...(await take(read, 1)));
        elements.push(...(await take(read, 500)));
        read.close();
        say([elements.map(({ price }) => Number(price)), states]);
        """,
        urls=urls,
    )
    written = asyncio.create_task(written_while(writer, script))
    await heard(script, 1)
    relay.kill()
    if where == "same port":
        relay.start()
    prices, states = await written
    assert prices == list(range(1, len(prices) + 1))
    assert len(prices) > 1_000
    names = [state["state"] for state in states]
    assert [name for name in names if name != "resuming"] == ["connecting", "open", "open", "closed"]
    lost = states[names.index("resuming")]
    assert lost["url"] == f"{url}/v1"
    assert 250 <= lost["delay"] <= 10_000


async def test_relay_that_stops_or_goes_silent_is_left(
    redis_server: RedisServer, start: Start, writer: Writer, run: Run
) -> None:
    relays = [start_relay(start, redis_server.url) for _ in range(3)]
    script = run(
        """
        const bus = connect(given.urls);
        const read = bus.read("trade", {
          symbols: ["A"],
          timeout: 1500,
          onState: ({ state, code }) => say([state, code ?? null]),
        });
        say((await take(read, 3)).map(({ price }) => price));
        bus.close();
        process.exit(0);  // a WebSocket waits for the close frame of the other end, which sleeps
        """,
        urls=[url for _, url in relays],
    )
    assert await heard(script, 2) == [["connecting", None], ["open", None]]
    await writer.write(1)
    relays[0][0].process.terminate()
    assert (await heard(script, 4))[2:] == [["resuming", 1012], ["open", None]]
    await writer.write(2)
    relays[1][0].signal(signal.SIGSTOP)
    await writer.write(3)
    await end_of(script)
    assert script.said[4:] == [["resuming", 1006], ["open", None], ["1", "2", "3"], ["closed", None]]


async def test_reader_that_blocks_is_resumed_after_4429(
    redis_server: RedisServer, start: Start, writer: Writer, run: Run
) -> None:
    relay, url = start_relay(start, redis_server.url, "--client-bytes", "1MB")
    script = run(
        """
        const bus = connect(given.url, { onState });
        const read = bus.read("trade", { symbols: ["A"] });
        await read.opened();
        say("blocked");
        const cell = new Int32Array(new SharedArrayBuffer(4));
        while (!existsSync(given.go)) Atomics.wait(cell, 0, 0, 20);
        const elements = await take(read, given.count);
        bus.close();
        say([elements.map(({ price }) => Number(price)), states.map(({ code }) => code)]);
        """,
        url=url,
        count=25_000,
        go=str(relay._log.with_name("go")),
    )
    await heard(script, 1)
    for number in range(0, 25_000, 1_000):
        await writer.write(*range(number + 1, number + 1_001))
    await until_async(lambda: relay.metric("tickbus_relay_closed_total", code="4429") == 1)
    relay._log.with_name("go").touch()
    prices, codes = await end_of(script)
    assert prices == list(range(1, 25_001))
    # the relay waits 5 s for a client to read its last words; a busy machine may need longer
    assert not {4429, 1006}.isdisjoint(codes)


async def test_queue_is_bounded_and_loses_nothing(
    redis_server: RedisServer, start: Start, writer: Writer, run: Run
) -> None:
    await writer.write(*range(1, 3_001))
    _, url = start_relay(start, redis_server.url)
    script = run(
        """
        const bus = connect(given.url, { onState });
        const read = bus.read("trade", { symbols: ["A"], from: "start", queue: 400 });
        const of = (name) => states.filter(({ state }) => state === name).length;
        while (of("resuming") === 0) await pause();
        say([read.waiting, read.cursor]);
        const elements = await take(read, 3_000);
        bus.close();
        say([elements.map(({ price }) => Number(price)), of("open")]);
        """,
        url=url,
    )
    prices, opened = await end_of(script)
    assert prices == list(range(1, 3_001))
    assert opened > 5
    (waiting, cursor), _ = script.said
    assert waiting == 400
    assert cursor[STREAM].startswith("0-0")


async def test_gaps_and_late_ticks_are_left_out_on_request(
    redis_server: RedisServer, start: Start, writer: Writer, run: Run
) -> None:
    late = Trade("A", "3", "1", Side.BUY, "3", NS, NS, None, None, Flag.LATE)
    expected = await write(
        writer,
        (TRADES, trade(1)),
        (TRADES, gap()),
        (TRADES, late),
        (TRADES, gap(repaired=True)),
        (TRADES, trade(5)),
    )
    _, url = start_relay(start, redis_server.url)
    script = run(
        """
        const bus = connect(given.url);
        for (const [gaps, late] of [[true, true], [false, true], [true, false], [false, false]]) {
          const read = bus.read("trade", { symbols: ["A"], from: "start", gaps, late });
          const elements = [];
          for await (const element of read) {
            elements.push(element);
            if (element.price === "5") break;
          }
          say(elements);
        }
        """,
        url=url,
    )
    await end_of(script)
    one, two, three, _, five = expected
    assert script.said == [expected, [one, three, five], [one, two, five], [one, five]]


async def test_conflated_data_hide_nothing(
    redis_server: RedisServer, start: Start, writer: Writer, run: Run
) -> None:
    bars = Stream("bar", "test", "A", "time:1m")
    _, url = start_relay(start, redis_server.url)
    script = run(
        """
        const bus = connect(given.url);
        const options = { symbols: ["A"], policy: "conflate", rate: 2 };
        const [trades, bars] = ["trade", "bar"].map((kind) => bus.read(kind, options));
        await Promise.all([trades.opened(), bars.opened()]);
        say("opened");
        const summaries = [];
        for await (const element of trades) {
          summaries.push(element);
          if (element.last === "50") break;
        }
        say(summaries);
        say(await take(bars, 3));
        say(bars.cursor);
        bus.close();
        """,
        url=url,
    )
    await heard(script, 1)
    for number in range(1, 51, 7):
        await writer.write(*range(number, min(number + 7, 51)))
    # a Gap stands before what precedes it in the stream: its cursor is higher
    first, loss, last = await write(
        writer,
        (bars, bar(NS)),
        (bars, Gap(StreamKind.BAR, "bars", GapKind.TRIMMED, 1, 2, symbol="A")),
        (bars, bar(NS + 9)),
    )
    await end_of(script)
    summaries, conflated, cursor = script.said[1:]
    assert sum(summary["count"] for summary in summaries) == 50
    assert sum(int(summary["value"]) for summary in summaries) == sum(range(1, 51))
    assert summaries[-1]["ts_event"] == "50n"
    assert sorted(conflated, key=lambda element: element["type"]) == [first, last, loss]
    assert cursor[bars.name].startswith(last["cursor"])


async def test_reset_of_redis_is_told_once(
    redis_server: RedisServer, start: Start, writer: Writer, run: Run
) -> None:
    relay, url = start_relay(start, redis_server.url, "--port", str(free_port()))
    script = run(
        """
        const bus = connect(given.url);
        const opened = ({ state }) => state === "open" && say("open");
        const read = bus.read("trade", { symbols: ["A"], onState: opened });
        for (let at = 0; at < 8; at++) {
          const { type, kind, price } = (await read.next()).value;
          say(kind ?? price);
        }
        bus.close();
        """,
        url=url,
    )
    await heard(script, 1)
    await writer.write(1, 2)
    await heard(script, 3)

    async def flush(*numbers: int) -> None:
        redis_server.client.flushall()
        again = await Writer(redis_server.url).open()
        await again.write(*numbers)
        again.close()

    await flush(3)  # while it reads
    await heard(script, 5)
    relay.kill()
    relay.start()
    await heard(script, 6)
    relay.kill()
    await flush(4, 5, 6)  # while it is away
    relay.start()
    await end_of(script)
    assert script.said == ["open", "1", "2", "reset", "3", "open", "open", "reset", "4", "5", "6"]


@pytest.mark.parametrize("symbols", [["S*"], [f"S{number:03}-WITH-A-LONG-NAME" for number in range(301)]])
async def test_more_streams_than_one_request_can_name(
    redis_server: RedisServer, start: Start, writer: Writer, run: Run, symbols: list[str]
) -> None:
    names = [f"S{number:03}-WITH-A-LONG-NAME" for number in range(301)]

    async def write_all(price: int, *names: str) -> None:
        streams = [Stream("trade", "test", name) for name in names]
        await write(writer, *((stream, trade(price, stream.symbol)) for stream in streams))

    await write_all(1, *names[:300])
    relay, url = start_relay(start, redis_server.url, "--port", str(free_port()))
    script = run(
        """
        const bus = connect(given.url);
        const read = bus.read("trade", { symbols: given.symbols, from: "start" });
        const count = async (count) => {
          const elements = await take(read, count);
          say(elements.map(({ symbol, price }) => `${symbol} ${price}`).sort());
        };
        await count(300);
        await count(301);
        await count(302);
        bus.close();
        """,
        url=url,
        symbols=symbols,
    )
    await heard(script, 1)
    relay.kill()
    await write_all(2, *names)  # one of them is new
    relay.start()
    await heard(script, 2)
    await write_all(3, *names)
    await write_all(3, "SOMETHING-NEW" if symbols == ["S*"] else names[0])
    await end_of(script)
    assert script.said[0] == [f"{name} 1" for name in names[:300]]
    assert script.said[1] == [f"{name} 2" for name in names]
    more = "SOMETHING-NEW" if symbols == ["S*"] else names[0]
    assert script.said[2] == sorted(f"{name} 3" for name in [*names, more])


async def test_token_goes_by_subprotocol_and_header(
    redis_server: RedisServer, start: Start, writer: Writer, run: Run, tmp_path: Path
) -> None:
    await writer.write(1)
    tokens = tmp_path / "tokens.toml"
    token = f"{TOKEN}?~\u00fc"  # base64 of it has characters that base64url writes otherwise
    tokens.write_text(token_row("desk", token), encoding="utf-8")
    _, url = start_relay(start, redis_server.url, "--tokens", str(tokens))
    script = run(
        """
        const urls = [];
        class Recorded extends WebSocket {
          constructor(url, protocols) { super(url, protocols); urls.push(url); }
        }
        const bus = connect(given.url, { token: given.token, WebSocket: Recorded });
        const read = bus.read("trade", { from: "start" });
        say([(await take(read, 1))[0].price, urls]);
        say(await bus.symbols().then((rows) => rows.length).catch(({ message }) => message));
        say(await read.next().catch((error) => [error instanceof TickbusError, error.code, states]));
        const wrong = connect(given.url, { token: "wrong", onState }).read("trade");
        say(await wrong.next().catch(({ code }) => [code, states.map(({ state }) => state)]));
        say(await wrong.next());
        """,
        url=url,
        token=token,
    )
    await heard(script, 2)
    tokens.write_text(token_row("other", "x"))
    await end_of(script)
    read, symbols, removed, wrong, end = script.said
    assert read == ["1", [f"{url}/v1"]]
    assert symbols == 1
    assert removed == [True, 4403, []]
    assert wrong == [4401, ["connecting", "closed"]]
    assert end == {"done": True}


async def test_errors_and_ends(redis_server: RedisServer, start: Start, writer: Writer, run: Run) -> None:
    await writer.write(1, 2, 3)
    _, url = start_relay(start, redis_server.url)
    script = run(
        """
        const bus = connect(given.url);
        const failure = (promise) => promise.catch(({ name, message }) => `${name}: ${message}`);
        say(await failure(bus.read("trade", { symbols: ["a b"] }).next()));
        say(await failure(bus.read("nonsense").opened()));
        const abort = new AbortController();
        const aborted = bus.read("trade", { signal: abort.signal });
        await aborted.opened();
        const waiting = failure(aborted.next());
        abort.abort();
        say(await waiting);
        const ended = bus.read("trade");
        const last = ended.next();
        bus.close();
        say(await last);
        for (const address of ["ftp://x", "ws://x/?token=t"]) {
          say(await failure(Promise.resolve(address).then(connect)));
        }
        while ((await bus.status()).clients) await pause();
        say("no client is left");
        """,
        url=url,
    )
    await end_of(script)
    symbol, kind, aborted, ended, address, token, left = script.said
    assert symbol.startswith("TickbusError: invalid symbol")
    assert "nonsense" in kind
    assert aborted == "AbortError: This operation was aborted"
    assert ended == {"done": True}
    assert "invalid address ftp://x" in address
    assert "never a part of the address" in token
    assert left == "no client is left"


def test_failures_that_pass_are_tried_again(run: Run) -> None:
    """What no relay can be made to do: a failed handshake without a close event, a Redis that errs once."""
    script = run(
        """
        let connections = 0;
        const from = [];
        class Fake {
          readyState = 0;
          constructor() {
            const number = ++connections;
            const say = (message) => this.onmessage({ data: JSON.stringify(message) });
            setTimeout(() => {
              if (number === 1) return this.onerror({});
              this.readyState = 1;
              this.send = (text) => setTimeout(() => {
                from.push(JSON.parse(text).from);
                if (number === 2) return say({ op: "error", id: 1, reason: "not now", retry: true });
                const stream = "trade:x:A";
                say({ op: "subscribed", id: 1, streams: [{ stream, cursor: "5-5", history: "h" }] });
                say({ id: 1, data: [{ type: "trade", stream, cursor: `6-${number}`, flags: [] }] });
                if (number === 3) this.onclose({ code: 1006, reason: "" });
              });
              this.onopen();
            });
          }
          close() {}
        }
        const bus = connect("ws://x", { WebSocket: Fake, onState });
        const elements = await take(bus.read("trade"), 2);
        bus.close();
        say([elements.map(({ cursor }) => cursor), from, states.map(({ code }) => code ?? null)]);
        """
    )
    cursors, begins, codes = script.result()
    assert cursors == ["6-3", "6-4"]
    assert begins == ["now", "now", {"trade:x:A": "6-3@h"}]
    assert codes == [None, 1006, 1013, None, 1006, None, None]


def test_package_has_the_version_and_the_intended_files(tmp_path: Path) -> None:
    package = json.loads((CLIENT / "package.json").read_text())
    assert package["name"] == "tickbus"
    assert package["version"] == VERSION
    done = subprocess.run(
        [NODE, NPM, "pack", "--dry-run", "--json", "--offline", "--cache", tmp_path],
        cwd=CLIENT, capture_output=True, text=True, check=True,
        env={"PATH": str(NODE.parent), "HOME": str(tmp_path)},
    )  # fmt: skip
    packed = json.loads(done.stdout)
    (packed,) = packed.values() if isinstance(packed, dict) else packed
    files = {file["path"] for file in packed["files"]}
    assert files == {"README.md", "package.json", "tickbus.d.ts", "tickbus.js"}


def start_gateway(start: Start, redis: str, *more: str) -> Process:
    """Start a gateway without symbols of its own, with a simulated vendor."""
    simulator = start("simulate", "--rate", "200", "--quotes-per-trade", "0")
    vendor = simulator.wait_for(r"listening on (ws://\S+)")[1]
    return start("gateway", "--feed", "binance", "--url", vendor, "--redis", redis, "--shards", "8", *more)


def held_wants(redis: RedisServer) -> set[str]:
    """Return what the holders want now."""
    keys = redis.client.scan_iter("tickbus:{wants:binance}:*")
    return {field.decode() for key in keys for field in redis.client.hgetall(key)}


async def test_symbol_that_nobody_subscribed_to_is_read_over_the_end_of_a_relay(
    redis_server: RedisServer, start: Start, run: Run
) -> None:
    start_gateway(start, redis_server.url)
    relay, url = start_relay(start, redis_server.url, "--port", str(free_port()))
    script = run(
        """
        const bus = connect(given.url, { onState });
        const wants = [];
        const onWant = ({ stream, state }) => wants.push([stream, state]);
        const read = bus.read("trade", { symbols: ["ETH-USDT"], want: true, onWant });
        const elements = await take(read, 20);
        say("kill");
        const opened = () => states.filter(({ state }) => state === "open").length;
        while (opened() < 2) elements.push(...(await take(read, 1)));
        elements.push(...(await take(read, 20)));
        while (!wants.some(([, state]) => state === "active")) elements.push(...(await take(read, 1)));
        say([elements.map(({ cursor }) => Number(cursor.split("-")[1])), wants.at(-1)]);
        bus.close();
        """,
        url=url,
    )
    await heard(script, 1)
    relay.kill()
    relay.start()  # does not know yet which gateways run
    counters, want = await end_of(script)
    assert counters == list(range(1, len(counters) + 1))
    assert want == ["trade:binance:ETH-USDT", "active"]
    await until_async(lambda: not held_wants(redis_server), 40)


async def test_wants_are_held_over_the_end_of_a_relay_until_they_are_closed(
    redis_server: RedisServer, start: Start, run: Run
) -> None:
    start_gateway(start, redis_server.url, "--max-symbols", "1")
    relay, url = start_relay(start, redis_server.url, "--port", str(free_port()))
    script = run(
        """
        const bus = connect(given.url, { onState });
        const want = bus.want(["ETH-USDT", "SOL-USDT"], { kind: ["trade", "quote"] });
        await want.opened();
        const told = {};
        for (;;) {
          const { stream, state, reason } = (await want.states.next()).value;
          told[stream] = [state, reason];
          const settled = Object.values(told).filter(([state]) => state !== "pending");
          if (settled.length === 4) break;
        }
        say(told);
        const rows = await bus.subscriptions("binance");
        say(rows.map(({ stream, state, reason, fixed }) => [stream, state, reason, fixed]));
        while (states.filter(({ state }) => state === "open").length < 2) await pause();
        say(states.map(({ state }) => state));
        while (!existsSync(given.go)) await pause();
        const last = want.states.next();
        want.close();
        say([await last, states.at(-1).state]);
        """,
        url=url,
        go=str(relay._log.with_name("go")),
    )
    told, rows = await heard(script, 2)
    first = {"trade:binance:ETH-USDT", "quote:binance:ETH-USDT"}
    active = {stream for stream, (state, _) in told.items() if state == "active"}
    refused = {stream: reason for stream, (state, reason) in told.items() if state == "refused"}
    assert active | refused.keys() == first | {"trade:binance:SOL-USDT", "quote:binance:SOL-USDT"}
    assert active == first
    assert set(refused.values()) == {"cap of 1 symbols reached"}
    assert {stream: (state, reason) for stream, state, reason, _ in rows} == {
        stream: tuple(state) for stream, state in told.items()
    }
    assert not any(fixed for *_, fixed in rows)
    wanted = {f"{kind} {symbol}" for kind in ("trade", "quote") for symbol in ("ETH-USDT", "SOL-USDT")}
    assert held_wants(redis_server) == wanted
    relay.kill()
    redis_server.client.delete(*redis_server.client.scan_iter("tickbus:{wants:binance}:*"))
    relay.start()
    await heard(script, 3)
    await until_async(lambda: held_wants(redis_server) == wanted)
    relay._log.with_name("go").touch()
    assert await end_of(script) == [{"done": True}, "closed"]
    assert [name for name in script.said[2] if name == "open"] == ["open", "open"]
    await until_async(lambda: not held_wants(redis_server))


async def test_want_that_is_refused_says_why(
    redis_server: RedisServer, start: Start, writer: Writer, run: Run, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_row("desk", TOKEN))
    _, url = start_relay(start, redis_server.url, "--tokens", str(tokens))
    script = run(
        """
        const bus = connect(given.url, { token: given.token });
        const failure = (promise) => promise.catch(({ name, message }) => `${name}: ${message}`);
        const want = bus.want(["A"], { feed: "test" });
        const next = failure(want.states.next());
        say([await failure(want.opened()), await next, await want.states.next()]);
        say(await failure(bus.read("trade", { symbols: ["A"], feeds: ["test"], want: true }).next()));
        const abort = new AbortController();
        abort.abort();
        say(await failure(bus.want(["A"], { signal: abort.signal }).states.next()));
        say(await bus.subscriptions("test"));
        bus.close();
        """,
        url=url,
        token=TOKEN,
    )
    await end_of(script)
    reason = "TickbusError: this token may not want symbols: leave out want"
    assert script.said == [
        [reason, reason, {"done": True}],
        reason,
        "AbortError: This operation was aborted",
        [],
    ]


async def test_watch_tells_how_the_bus_is_and_again_after_a_lost_connection(
    redis_server: RedisServer, start: Start, run: Run, writer: Writer
) -> None:
    await write(writer, (TRADES, trade(1)))
    relay, url = start_relay(start, redis_server.url)
    script = run(
        """
        const bus = connect(given.url, { onState: ({ watch, ...event }) => states.push(event.state) });
        const watch = bus.watch();
        const health = (await watch.next()).value;
        say(health.feeds.map(({ name, state }) => [name, state]));
        say((await bus.status()).bus.feeds.length);
        const following = watch.next();
        say((await following).value.time > health.time);
        while (!states.includes("resuming")) await pause();
        say((await watch.next()).value.feeds.length);
        watch.close();
        say([await watch.next(), states.at(-1)]);
        """,
        url=url,
    )
    await asyncio.to_thread(script.hear, 3)
    relay.kill()
    start_relay(start, redis_server.url, "--port", url.rpartition(":")[2])
    await end_of(script)
    assert script.said == [[["test", "gone"]], 1, True, 1, [{"done": True}, "closed"]]
