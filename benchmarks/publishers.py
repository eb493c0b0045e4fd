"""The programs that carry ticks from the upstream into Redis: our gateway, and cryptofeed. Started, timed and checked alike."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import redis

from benchmarks.frames import FrameFile, MadeTrade
from benchmarks.processes import PYTHON, ROOT, BenchmarkError, Lab, Process, free_port, upstream, wait_until
from tickbus.protocol.codec import DECODE
from tickbus.protocol.names import Keys, Stream

CRYPTOFEED = "cryptofeed[redis]==2.4.*"
_LIMIT_SECONDS = 300.0
_GATEWAY = ("-m", "services.cli", "gateway")


class Publisher(Protocol):
    name: str
    patience: float
    """Seconds that it gets to end after SIGTERM."""

    def command(self, ws_url: str, redis_url: str, symbols: list[str], folder: Path) -> list[str]:
        """How it is started; files for it may be put into `folder`."""

    def key(self, symbol: str) -> str:
        """The stream it writes a symbol's trades to."""

    def witness(self, client: redis.Redis, symbol: str) -> list[tuple[str, object, object]]:
        """What it stored for a symbol: vendor id, price, size."""

    def expected(self, trade: MadeTrade) -> tuple[str, object, object]:
        """What it should have stored."""


class Tickbus:
    """`tickbus gateway`, everything on: ids checked, Gaps, doorbell, last values, fences, metrics."""

    name = "tickbus gateway"
    patience = 15.0

    def __init__(self, feed: str = "binance", wrapper: tuple[str, ...] = (PYTHON,)) -> None:
        """`wrapper`: what runs the module, an interpreter or a profiler in front of one."""
        self.feed = feed
        self._wrapper = wrapper

    def command(self, ws_url: str, redis_url: str, symbols: list[str], folder: Path) -> list[str]:
        wanted = folder / "symbols"
        wanted.write_text("\n".join(symbols))
        options = {
            "--feed": self.feed,
            "--url": ws_url,
            "--symbols": f"@{wanted}",
            "--kinds": "trade",
            "--redis": redis_url,
            "--metrics-port": str(free_port()),
            "--log-level": "warning",
        }
        return [*self._wrapper, *_GATEWAY, *(text for option in options.items() for text in option)]

    def key(self, symbol: str) -> str:
        return Keys().stream(Stream("trade", self.feed, symbol))

    def witness(self, client: redis.Redis, symbol: str) -> list[tuple[str, object, object]]:
        trades = [DECODE[b"t"](row[b"t"]) for row in _rows(client, self.key(symbol)) if b"t" in row]
        return [(trade.trade_id, trade.price_text, trade.size_text) for trade in trades]

    def expected(self, trade: MadeTrade) -> tuple[str, object, object]:
        return str(trade.id), trade.price, trade.size


class Cryptofeed:
    """cryptofeed with its TradeStream backend: floats, one XADD of eight fields a trade."""

    patience = 1.0  # all is stored by then, and it takes ten seconds to close its connections

    def __init__(self, python: Path) -> None:
        self._python = python
        asked = subprocess.run(
            [python, "-m", "pip", "show", "cryptofeed"], capture_output=True, text=True, check=False
        ).stdout
        version = next((line.split()[1] for line in asked.splitlines() if line.startswith("Version:")), None)
        if version is None:
            raise BenchmarkError(
                f"{python} has no cryptofeed; install {CRYPTOFEED} there, or leave --cryptofeed-python out"
            )
        self.name = f"cryptofeed {version}"

    def command(self, ws_url: str, redis_url: str, symbols: list[str], folder: Path) -> list[str]:
        host, port = redis_url.removeprefix("redis://").partition("/")[0].split(":")
        return [
            str(self._python),
            str(ROOT / "benchmarks" / "cryptofeed_peer.py"),
            ws_url,
            host,
            port,
            ",".join(symbols),
        ]

    def key(self, symbol: str) -> str:
        return f"trades-BINANCE-{symbol}"

    def witness(self, client: redis.Redis, symbol: str) -> list[tuple[str, object, object]]:
        rows = _rows(client, self.key(symbol))
        return [(row[b"id"].decode(), float(row[b"price"]), float(row[b"amount"])) for row in rows]

    def expected(self, trade: MadeTrade) -> tuple[str, object, object]:
        return str(trade.id), float(trade.price), float(trade.size)


def cryptofeed_python(given: Path | None) -> Path:
    """The interpreter of a venv with cryptofeed: the one given, else .bench/cryptofeed, made on first use."""
    if given is not None:
        return given
    folder = ROOT / ".bench" / "cryptofeed"
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing {CRYPTOFEED} into {folder}, once", file=sys.stderr, flush=True)
        subprocess.run([PYTHON, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", CRYPTOFEED], check=True)
    return python


@dataclass(frozen=True)
class Run:
    seconds: float
    """From the first frame sent until the last tick is in Redis."""
    cpu_seconds: float
    """Of the publisher, its start included."""


def publish(
    publisher: Publisher, file: FrameFile, lab: Lab, started: Callable[[int], None] | None = None
) -> Run:
    """Empty the server, send all frames through the publisher, check what is stored. `started` gets the publisher's process id."""
    lab.client.flushall()
    symbols = list(file.counts)
    with upstream(lab.folder, "flood", file.path, "--symbols", str(len(symbols))) as source:
        url = f"ws://127.0.0.1:{source.news('port', 20)['port']}"
        with Process(
            "publisher", publisher.command(url, lab.url, symbols, lab.folder), lab.folder
        ) as process:
            begin = source.news("first_sent", 60, needs=process)["first_sent"]
            if started is not None:
                started(process.popen.pid)
            end = _stored(publisher, file, lab.client, process)
            cpu = process.cpu_seconds()
            process.stop(publisher.patience)
    _check(publisher, file, lab.client)
    return Run((end - begin) / 1e9, cpu)


def _stored(publisher: Publisher, file: FrameFile, client: redis.Redis, process: Process) -> int:
    """Wait until everything is in Redis; -> when it was (monotonic ns).

    Asked is one XLEN every 5 ms: the length of the stream that the last frame belongs to. Only when that is full, all.
    """
    last = publisher.key(file.last.symbol)
    full = file.counts[file.last.symbol]
    all_keys = [publisher.key(symbol) for symbol in file.counts]

    def complete() -> bool:
        process.check_alive()
        return client.xlen(last) >= full and _lengths(client, all_keys) >= file.frames

    try:
        wait_until("all ticks to be stored", complete, _LIMIT_SECONDS, every=0.005)
    except BenchmarkError as error:
        stored = _lengths(client, all_keys)
        raise BenchmarkError(
            f"{publisher.name}: {error}: {stored:,} of {file.frames:,} are in Redis; {process.log_tail()}"
        ) from None
    return time.monotonic_ns()


def _rows(client: redis.Redis, key: str) -> list[dict[bytes, bytes]]:
    """All entries of a stream, without their IDs."""
    entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(key))
    return [fields for _, fields in entries]


def _lengths(client: redis.Redis, keys: list[str]) -> int:
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.xlen(key)
    return sum(pipe.execute())


def _check(publisher: Publisher, file: FrameFile, client: redis.Redis) -> None:
    """Every stream has as many entries as were sent, and one stream has the very trades."""
    for symbol, count in file.counts.items():
        stored = client.xlen(publisher.key(symbol))
        if stored != count:
            raise BenchmarkError(f"{publisher.name}: {symbol} has {stored:,} entries, {count:,} were sent")
    found = publisher.witness(client, file.last.symbol)
    if found != [publisher.expected(trade) for trade in file.witness]:
        raise BenchmarkError(
            f"{publisher.name}: the trades stored for {file.last.symbol} are not those that were sent"
        )
