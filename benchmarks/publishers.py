"""The programs that carry ticks from the upstream into Redis: our gateway and cryptofeed.

They are started, timed and checked alike.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import redis

from benchmarks.frames import FrameFile, SyntheticTrade
from benchmarks.processes import PYTHON, ROOT, BenchmarkError, Lab, Process, free_port, upstream, wait_until
from tickbus.protocol.codec import DECODE
from tickbus.protocol.names import Keys, Stream

CRYPTOFEED = "cryptofeed[redis]==2.4.*"
_LIMIT_SECONDS = 300.0
_GATEWAY = ("-m", "services.cli", "gateway")


class Publisher(Protocol):
    name: str
    stop_seconds: float
    """How long it may take to stop after SIGTERM."""

    def command(self, ws_url: str, redis_url: str, symbols: list[str], folder: Path) -> list[str]:
        """Return its command line; `folder` is for files it needs."""
        ...

    def key(self, symbol: str) -> str:
        """Return the stream it writes a symbol's trades to."""
        ...

    def stored(self, client: redis.Redis, symbol: str) -> list[tuple[str, object, object]]:
        """Return what it stored for a symbol: vendor id, price, size."""
        ...

    def expected(self, trade: SyntheticTrade) -> tuple[str, object, object]:
        """Return what it should have stored for a trade."""
        ...


class Tickbus:
    """`tickbus gateway`, everything on: ids checked, Gaps, doorbell, last values, fences, metrics."""

    name = "tickbus gateway"
    stop_seconds = 15.0

    def __init__(self, feed: str = "binance", wrapper: tuple[str, ...] = (PYTHON,)) -> None:
        """`wrapper` runs the module: an interpreter, or one with a profiler."""
        self.feed = feed
        self._wrapper = wrapper

    def command(self, ws_url: str, redis_url: str, symbols: list[str], folder: Path) -> list[str]:
        file = folder / "symbols"
        file.write_text("\n".join(symbols))
        options = {
            "--feed": self.feed,
            "--url": ws_url,
            "--symbols": f"@{file}",
            "--kinds": "trade",
            "--redis": redis_url,
            "--metrics-port": str(free_port()),
            "--log-level": "warning",
        }
        return [*self._wrapper, *_GATEWAY, *(text for option in options.items() for text in option)]

    def key(self, symbol: str) -> str:
        return Keys().stream(Stream("trade", self.feed, symbol))

    def stored(self, client: redis.Redis, symbol: str) -> list[tuple[str, object, object]]:
        trades = [DECODE[b"t"](row[b"t"]) for row in _rows(client, self.key(symbol)) if b"t" in row]
        return [(trade.trade_id, trade.price_text, trade.size_text) for trade in trades]

    def expected(self, trade: SyntheticTrade) -> tuple[str, object, object]:
        return str(trade.id), trade.price, trade.size


class Cryptofeed:
    """cryptofeed with its TradeStream backend: floats, one XADD of eight fields per trade."""

    stop_seconds = 1.0  # everything is stored by then, and closing its connections takes it ten seconds

    def __init__(self, python: Path) -> None:
        self._python = python
        output = subprocess.run(
            [python, "-m", "pip", "show", "cryptofeed"], capture_output=True, text=True, check=False
        ).stdout
        version = next((line.split()[1] for line in output.splitlines() if line.startswith("Version:")), None)
        if version is None:
            raise BenchmarkError(
                f"{python} has no cryptofeed; install {CRYPTOFEED} there, or omit --cryptofeed-python"
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

    def stored(self, client: redis.Redis, symbol: str) -> list[tuple[str, object, object]]:
        rows = _rows(client, self.key(symbol))
        return [(row[b"id"].decode(), float(row[b"price"]), float(row[b"amount"])) for row in rows]

    def expected(self, trade: SyntheticTrade) -> tuple[str, object, object]:
        return str(trade.id), float(trade.price), float(trade.size)


def cryptofeed_python(path: Path | None) -> Path:
    """Return the Python of a venv with cryptofeed: `path`, or .bench/cryptofeed, created on first use."""
    if path is not None:
        return path
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
    """CPU time of the publisher, including its start."""


def publish(
    publisher: Publisher, file: FrameFile, lab: Lab, started: Callable[[int], None] | None = None
) -> Run:
    """Empty the server, send all frames through the publisher, and check what is stored.

    `started` is called with the process id of the publisher.
    """
    lab.client.flushall()
    symbols = list(file.counts)
    with upstream(lab.folder, "flood", file.path, "--symbols", str(len(symbols))) as source:
        url = f"ws://127.0.0.1:{source.wait_event('port', 20)['port']}"
        with Process(
            "publisher", publisher.command(url, lab.url, symbols, lab.folder), lab.folder
        ) as process:
            begin = source.wait_event("first_sent", 60, needs=process)["first_sent"]
            if started is not None:
                started(process.popen.pid)
            end = _wait_stored(publisher, file, lab.client, process)
            cpu = process.cpu_seconds()
            process.stop(publisher.stop_seconds)
    _check(publisher, file, lab.client)
    return Run((end - begin) / 1e9, cpu)


def _wait_stored(publisher: Publisher, file: FrameFile, client: redis.Redis, process: Process) -> int:
    """Wait until everything is in Redis and return the time (monotonic ns).

    It costs one XLEN every 5 ms, of the stream that the last frame belongs to. All streams are checked only
    when that one is complete.
    """
    last = publisher.key(file.last.symbol)
    count = file.counts[file.last.symbol]
    all_keys = [publisher.key(symbol) for symbol in file.counts]

    def complete() -> bool:
        process.check_alive()
        return client.xlen(last) >= count and _lengths(client, all_keys) >= file.frames

    try:
        wait_until("all ticks to be stored", complete, _LIMIT_SECONDS, every=0.005)
    except BenchmarkError as error:
        stored = _lengths(client, all_keys)
        raise BenchmarkError(
            f"{publisher.name}: {error}: {stored:,} of {file.frames:,} are in Redis; {process.log_tail()}"
        ) from None
    return time.monotonic_ns()


def _rows(client: redis.Redis, key: str) -> list[dict[bytes, bytes]]:
    """Return all entries of a stream, without their IDs."""
    entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(key))
    return [fields for _, fields in entries]


def _lengths(client: redis.Redis, keys: list[str]) -> int:
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.xlen(key)
    return sum(pipe.execute())


def _check(publisher: Publisher, file: FrameFile, client: redis.Redis) -> None:
    """Check that every stream has as many entries as were sent, and that one stream has the very trades."""
    for symbol, count in file.counts.items():
        length = client.xlen(publisher.key(symbol))
        if length != count:
            raise BenchmarkError(f"{publisher.name}: {symbol} has {length:,} entries, {count:,} were sent")
    stored = publisher.stored(client, file.last.symbol)
    if stored != [publisher.expected(trade) for trade in file.sample]:
        raise BenchmarkError(
            f"{publisher.name}: the trades stored for {file.last.symbol} differ from those sent"
        )
