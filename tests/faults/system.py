"""The whole system as real processes: simulator, gateways, Redis, bars, recorders, an app, relays with two
clients; a proxy on every connection.

`supervise` does what a process supervisor does: it restarts what ended. It also judges how it ended.
"""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import redis as redis_py
from support.attacker import AttackerProcess
from support.churning import Churn
from support.processes import Process
from support.proxy import ProxyProcess
from support.redis_server import RedisServer, free_port
from support.waiting import until

from faults import app, ledgers, raw
from faults.backends import OneServer, backend
from faults.checker import METRICS, RESENT, Result, Verdict, check
from faults.disk import SmallDisk
from faults.memory import Memory
from tickbus.protocol.bar_specs import parse
from tickbus.protocol.codec import decode, decode_head
from tickbus.protocol.messages import Bar, Trade
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.units import SECOND

_GRACE, _HORIZON = SECOND, 120 * SECOND
_YOUNG_SECONDS = 20.0
"""A process that finds no Redis in its first seconds may end with a message; its supervisor restarts it."""
_START_SECONDS = 90.0
"""A machine that has more to do than this run starts a dozen processes slowly."""
UNAVAILABLE = (redis_py.RedisError, OSError)
"""What a look at the system may raise while it is under a fault."""


@dataclass(frozen=True)
class Shape:
    """How large a system is."""

    gateways: int = 1
    bars: int = 1
    recorders: int = 1
    relays: int = 0
    """With any, two lossless clients read all through them: one of the library, and one without it."""
    symbols: int = 12
    rate: int = 600
    seed: int = 1
    redis: str = "server"
    """server, sentinel or cluster."""
    clock: bool = False
    """Whether the gateways run under faketime, so that their wall clock can be stepped."""
    backlog: str = "1MB"
    """A gateway's memory for entries that Redis has not taken: small, so that it spills within seconds."""
    spill: str = "64MB"
    attacked: bool = False
    """Whether there is an attacker in front of the vendor."""

    def __str__(self) -> str:
        faketime = ", faketime" if self.clock else ""
        return (
            f"{self.redis}, {self.gateways} gateways (backlog {self.backlog}, spill {self.spill}{faketime}), "
            f"{self.bars} bars, {self.recorders} recorders, {self.relays} relays, "
            f"{self.symbols} symbols, {self.rate} ticks/s"
        )


class App(Process):
    command = [sys.executable, app.__file__]


class Raw(Process):
    command = [sys.executable, "-m", raw.__name__]


CLIENTS = ("remote", "raw")
"""Of the relays."""


@dataclass
class Watch:
    """What the supervisor knows of a process."""

    started: float = field(default_factory=time.monotonic)
    ended: float | None = None


class System:
    specs = ("time:1s", "time:5s", "tick:50")
    lease_ttl = 1.5

    def __init__(self, folder: Path, shape: Shape = Shape()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.shape = shape
        self.keys = Keys(shards=16)
        self.parts: dict[str, Process] = {}
        self.down: set[str] = set()
        """Processes that a fault keeps down."""
        self.frozen: set[str] = set()
        """Processes that a fault has stopped with a signal."""
        self.verdicts: list[Verdict] = []
        self.restarts = 0
        self.flushed = False
        self.links: list[str] = []
        self.held: dict[str, list[socket.socket]] = {}
        """Connections that a fault holds open, by its target."""
        self.limited: dict[str, int] = {}
        """Processes whose limits a fault has lowered, by its target."""
        self.logged: dict[str, int] = {}
        """How much the gateways had logged when a fault began that is mended as their logs say."""
        self.churn: Churn | None = None
        """Holders whose wants change all the time."""
        self._watched: dict[str, Watch] = {}
        self._delivered: dict[str, dict[str, StreamId]] = {}
        self._ledger_read: dict[str, int] = {}
        self.symbols = [f"S{number:02d}-USDT" for number in range(1, shape.symbols + 1)]
        self._spelled = {symbol.replace("-", ""): symbol for symbol in self.symbols}
        self.backend = backend(shape.redis, folder / "redis")
        self.proxy = ProxyProcess(folder / "proxy.log")
        self.attacker = AttackerProcess(folder / "attacker.log") if shape.attacked else None
        self.memory = Memory(shape)
        self.disk = SmallDisk(folder / "data")
        self.spill_disk = SmallDisk(folder / "spill")
        self.clock_file = folder / "faketime"

    # start and end

    def start(self) -> None:
        self.backend.start()
        simulator = self._add(
            "simulator", "simulate", "--rate", str(self.shape.rate), "--seed", str(self.shape.seed),
            "--symbols", ",".join(self._spelled), "--ledger", str(self.folder / "sent.jsonl"),
        )  # fmt: skip
        self._vendor_port = int(simulator.wait_for(r"listening on ws://[\d.]+:(\d+)")[1])
        if self.attacker is not None:
            self._vendor_port = self.attacker.open(
                "127.0.0.1", self._vendor_port, self.folder / "planted.jsonl"
            )
        for number in range(1, self.shape.gateways + 1):
            self.add_gateway(number)
        for number in range(1, self.shape.bars + 1):
            name = f"bars-{number}"
            self._add(
                name, "bars", *self._common(name), "--specs", ",".join(self.specs),
                "--grace", "1s", "--horizon", "2m", "--replay-window", "3m",
            )  # fmt: skip
        for number in range(1, self.shape.recorders + 1):
            name = f"recorder-{number}"
            self._add(
                name, "recorder", *self._common(name),
                "--data-dir", str(self.disk.folder), "--flush-interval", "500ms",
            )  # fmt: skip
        self.parts["app"] = App(
            self.folder / "app.log",
            "--redis",
            self._redis_url("app"),
            "--ledger",
            str(self.folder / "delivered.jsonl"),
        )
        self._watched["app"] = Watch()
        if self.shape.relays:
            self._start_relays()
        self.until(
            lambda: all(self.heads().get(name, StreamId(0, 0)).seq > 2 for name in self.tick_streams()),
            _START_SECONDS,
            "every stream has ticks",
        )
        self.until(self._services_commit, _START_SECONDS, "bars and recorder commit positions")
        self.until(self.caught_up, _START_SECONDS, "everything has caught up")
        self.memory.begin()

    def _start_relays(self) -> None:
        urls = []
        for number in range(1, self.shape.relays + 1):
            name, port = f"relay-{number}", free_port()
            self._add(
                name, "relay", "--redis", self._redis_url(name), "--shards", str(self.keys.shards),
                "--port", str(port), "--stop-deadline", "5s",
            )  # fmt: skip
            urls.append(f"ws://127.0.0.1:{self._link(f'client-{name}', port)}")
        for name in self.parts:
            if name.startswith("relay-"):
                self.parts[name].wait_for("serving")
        for name, kind in zip(CLIENTS, (App, Raw), strict=True):
            ledger = str(self.folder / f"{name}.jsonl")
            path = str(Path(__file__).parent.parent)
            self.parts[name] = kind(
                self.folder / f"{name}.log", "--relays", ",".join(urls), "--ledger", ledger, PYTHONPATH=path
            )
            self._watched[name] = Watch()

    def _services_commit(self) -> bool:
        streams = set(self.tick_streams())
        trades = {name for name in streams if name.startswith("trade:")}
        wanted = {
            "bars": trades if self.shape.bars else set(),
            "recorder": streams if self.shape.recorders else set(),
        }
        return all(names <= self._positions(service).keys() for service, names in wanted.items() if names)

    def add_gateway(self, number: int) -> str:
        name = f"gateway-{number}"
        vendor = self._link(f"vendor-{name}", self._vendor_port)
        self._add(
            name, "gateway", *self._common(name), "--feed", "binance", "--url", f"ws://127.0.0.1:{vendor}",
            "--symbols", ",".join(self.symbols), "--kinds", "trade,quote", "--silence", "3s",
            "--takeover-delay", "0s", "--replay-window", "3m", "--backlog-bytes", self.shape.backlog,
            "--spill-dir", str(self.spill_disk.folder / name), "--spill-bytes", self.shape.spill,
            **self._clock(),
        )  # fmt: skip
        return name

    def _common(self, name: str) -> tuple[str, ...]:
        ttl = f"{int(self.lease_ttl * 1000)}ms"
        return (
            "--redis", self._redis_url(name), "--shards", str(self.keys.shards),
            "--lease-ttl", ttl, "--stop-deadline", "5s",
        )  # fmt: skip

    def _redis_url(self, name: str) -> str:
        return self.backend.url(lambda port: self._link(f"redis-{name}", port))

    def _link(self, name: str, port: int) -> int:
        self.links.append(name)
        return self.proxy.open(name, "127.0.0.1", port)

    def _clock(self) -> dict[str, str]:
        if not self.shape.clock:
            return {}
        self.step_clock("+0")
        return {
            "LD_PRELOAD": "libfaketime.so.1",
            "LD_LIBRARY_PATH": str(faketime() or ""),
            "FAKETIME_TIMESTAMP_FILE": str(self.clock_file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "0",
        }

    def step_clock(self, offset: str) -> None:
        self.clock_file.write_text(f"{offset}\n")

    def _add(self, name: str, *args: str, **environ: str) -> Process:
        part = self.parts[name] = Process(self.folder / f"{name}.log", *args, **environ)
        self._watched[name] = Watch()
        return part

    def close(self) -> None:
        self.end_churn()
        for part in self.parts.values():
            part.close()
        self.proxy.close()
        if self.attacker is not None:
            self.attacker.close()
        for sockets in self.held.values():
            for one in sockets:
                one.close()
        self.backend.close()
        self.disk.close()
        self.spill_disk.close()

    @property
    def redis(self) -> RedisServer:
        """The server of a system that has one."""
        assert isinstance(self.backend, OneServer)
        return self.backend.server

    # roles

    def of(self, role: str) -> list[str]:
        return [name for name in self.parts if name.rpartition("-")[0] == role or name == role]

    def active_gateway(self) -> str | None:
        """Return the gateway that reports itself ready, among those that can answer."""
        able = [name for name in self.of("gateway") if name not in self.down | self.frozen]
        return next((name for name in able if self.get(name, "/readyz")[0] == 200), None)

    def get(self, name: str, path: str) -> tuple[int, str]:
        part = self.parts[name]
        if part.process.poll() is not None or "metrics on http" not in part.output:
            return 0, ""
        try:
            return part.get(path)
        except OSError:  # URLError is an OSError: the process has just ended, or does not answer
            return 0, ""

    def tick_streams(self) -> list[str]:
        return [
            Stream(kind, ledgers.FEED, symbol).name for kind in ("trade", "quote") for symbol in self.symbols
        ]

    # what faults do

    def kill(self, name: str) -> None:
        self.down.add(name)
        self.parts[name].kill()

    def terminate(self, name: str) -> None:
        self.down.add(name)
        self.parts[name].signal(signal.SIGTERM)

    def expect_clean_exit(self, name: str) -> None:
        """After `terminate`: the process ends by itself, with 0, or with 3 if it has not found Redis yet."""
        try:
            code = self.parts[name].wait(20)
        except subprocess.TimeoutExpired:
            self.verdicts.append(Verdict("stuck", name, "did not end within 20 s of SIGTERM"))
            self.parts[name].kill()
            return
        good = (
            (0, 3, 5, -signal.SIGTERM)
            if time.monotonic() - self._watched[name].started < _YOUNG_SECONDS or name == "app"
            else (0, 5)
        )
        if code not in good:
            self._blame(name, code)

    def restart(self, name: str) -> None:
        self.parts[name].start()
        self._watched[name] = Watch()
        self.down.discard(name)

    def freeze(self, name: str) -> None:
        self.frozen.add(name)
        self.parts[name].signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        self.frozen.discard(name)
        self.parts[name].signal(signal.SIGCONT)

    def begin_churn(self) -> None:
        """Let symbols that the vendor does not have be wanted and dropped, 500 of them: what changes is the
        subscription, beside the symbols that are followed here."""
        self.churn = Churn(
            self.folder / "churn.log", "--redis", self.backend.url(lambda port: port), "--feed", ledgers.FEED,
            "--seed", str(self.shape.seed), PYTHONPATH=str(Path(__file__).parent.parent),
        )  # fmt: skip

    def end_churn(self) -> None:
        if self.churn is not None:
            self.churn.close()
            self.churn = None

    # supervision

    def supervise(self) -> None:
        """Restart what ended by itself, half a second later."""
        now = time.monotonic()
        self.memory.sample({name: part.process.pid for name, part in self.parts.items()}, now)
        for name, part in self.parts.items():
            if name in self.down or part.process.poll() is None:
                continue
            watch = self._watched[name]
            if watch.ended is None:
                watch.ended = now
                code = part.wait(1)
                young = now - watch.started < _YOUNG_SECONDS
                # 2: a recorder that finds its disk full at the start reports it and ends
                if not (
                    code == 5
                    or (code == 3 and young)
                    or (code == 2 and young and "No space left" in part.output)
                ):
                    self._blame(name, code)
            elif now - watch.ended > 0.5:
                self.restarts += 1
                self.restart(name)

    def _blame(self, name: str, code: int) -> None:
        self.verdicts.append(Verdict("crashed", name, f"exit code {code}: {self.parts[name].output[-1500:]}"))

    def until(self, condition: object, seconds: float, what: str) -> None:
        """Like `support.waiting.until`, but keep supervising meanwhile."""

        def met() -> bool:
            self.supervise()
            try:
                return bool(condition())  # type: ignore[operator]
            except UNAVAILABLE:
                return False

        until(met, seconds, what)

    def heads(self) -> dict[str, StreamId]:
        """Return the newest ID of each stream, by its head in `last`. Raises errors of redis-py."""
        with self.backend.client.pipeline(transaction=False) as pipe:
            for shard in range(self.keys.shards):
                pipe.hgetall(self.keys.last(shard))
            heads: dict[str, StreamId] = {}
            for found in pipe.execute():
                for name, head in found.items():
                    with suppress(ValueError):  # an attack: its writer replaces it, or the fault removes it
                        heads[name.decode()] = StreamId.parse(decode_head(head).id)
            return heads

    def _behind(self, heads: dict[str, StreamId], done: dict[str, StreamId]) -> int:
        return sum(max(0, head.seq - done.get(name, StreamId(0, 0)).seq) for name, head in heads.items())

    def _positions(self, service: str) -> dict[str, StreamId]:
        with self.backend.client.pipeline(transaction=False) as pipe:
            for shard in range(self.keys.shards):
                pipe.hgetall(self.keys.position(shard, service))
            return {
                name.decode(): StreamId.parse(id) for found in pipe.execute() for name, id in found.items()
            }

    def delivered(self, who: str = "delivered") -> dict[str, StreamId]:
        """Return the newest ID of each stream in a reader's ledger, reading on from the previous call.

        who: `delivered`, the app's, or one of CLIENTS.
        """
        path = self.folder / f"{who}.jsonl"
        newest = self._delivered.setdefault(who, {})
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._ledger_read.get(who, 0))
                piece = file.read()
            whole = piece[: piece.rfind(b"\n") + 1]
            self._ledger_read[who] = self._ledger_read.get(who, 0) + len(whole)
            for line in whole.splitlines():
                stream, id, field_name, *_ = app.parse(line)
                if field_name != "lost":
                    newest[str(stream)] = StreamId.parse(str(id))
        return newest

    def clients(self) -> tuple[str, ...]:
        """Return the clients of the relays."""
        return CLIENTS if self.shape.relays else ()

    def caught_up(self) -> bool:
        """Whether everybody has, under load, all ticks up to about two seconds ago."""
        active = self.active_gateway()
        if active is None or self.parts[active].metric("tickbus_feed_connected") != 1:
            return False
        allowed = self.shape.rate * 2
        if self.parts[active].metric("tickbus_backlog_ticks") > allowed:
            return False
        heads = self.heads()
        ticks = {name: head for name, head in heads.items() if not name.startswith("bar:")}
        newest = max((head.ms for head in ticks.values()), default=0)
        if self._now_ms() - newest > 2_000:
            return False
        trades = {name: head for name, head in ticks.items() if name.startswith("trade:")}
        return (
            self._behind(heads, self.delivered()) < allowed
            and all(self._behind(heads, self.delivered(name)) < allowed for name in self.clients())
            and (not self.shape.bars or self._behind(trades, self._positions("bars")) < allowed)
            and (not self.shape.recorders or self._behind(heads, self._positions("recorder")) < allowed)
        )

    def _now_ms(self) -> int:
        seconds, micros = self.backend.now()
        return int(seconds) * 1000 + int(micros) // 1000

    # the end of a run

    def drain(self, seconds: float = 40.0) -> None:
        """Wait for new ticks of every symbol after the last fault; then end the market, and wait until
        everybody has everything."""
        before = self.heads()
        self.until(
            lambda: all(self.heads()[name].seq > before[name].seq + 2 for name in self.tick_streams()),
            30,
            "every stream continues",
        )
        self.parts["simulator"].stop()
        self.down.add("simulator")
        with self._stuck_is_a_verdict("drain"):
            self.until(self._gateway_is_empty, seconds, "the gateway's backlog is empty")
            if self.shape.bars:
                self.until(
                    lambda: self._behind(self.trade_heads(), self._positions("bars")) == 0,
                    seconds,
                    "bars have read everything",
                )
                self.until(self._bars_are_closed, seconds, "the last bars are closed")
            self.until(
                lambda: self._behind(self.heads(), self.delivered()) == 0, seconds, "the app has everything"
            )
            for name in self.clients():
                self.until(
                    lambda name=name: self._behind(self.heads(), self.delivered(name)) == 0,
                    seconds,
                    f"{name} has everything",
                )
            if self.shape.recorders:
                self.until(self._all_is_recorded, seconds, "everything is recorded")

    @contextmanager
    def _stuck_is_a_verdict(self, where: str) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            self.verdicts.append(Verdict("stuck", where, str(error)[:500]))

    def trade_heads(self) -> dict[str, StreamId]:
        return {name: head for name, head in self.heads().items() if name.startswith("trade:")}

    def _gateway_is_empty(self) -> bool:
        # no gateway is connected any more, hence none is ready: take the one that publishes, whose gaps are
        # counted
        name = self._writer()
        return name is not None and self.parts[name].metric("tickbus_backlog_ticks") == 0

    def _writer_metrics(self) -> str:
        writer = self._writer()
        return "" if writer is None else self.get(writer, "/metrics")[1]

    def _writer(self) -> str | None:
        """Return the gateway with the highest epoch."""
        epochs = {
            name: self.parts[name].metric("tickbus_epoch")
            for name in self.of("gateway")
            if self.get(name, "/healthz")[0] == 200
        }
        return max(epochs, key=lambda name: epochs[name], default=None)

    def _bars_are_closed(self) -> bool:
        for symbol in self.symbols:
            trades = self._newest(Stream("trade", ledgers.FEED, symbol), 50)
            newest = max((trade.ts_event for trade in trades if isinstance(trade, Trade)), default=0)
            for spec in self.specs:
                if newest and spec.startswith("time:"):
                    start = newest // int(parse(spec).size) * int(parse(spec).size)
                    bars = self._newest(Stream("bar", ledgers.FEED, symbol, spec), 20)
                    if start not in {bar.start for bar in bars if isinstance(bar, Bar)}:
                        return False
        return True

    def _newest(self, stream: Stream, count: int) -> list[object]:
        rows = self.backend.client.xrevrange(self.keys.stream(stream), count=count)
        return [decode(name, payload) for _, fields in rows for name, payload in fields.items()]

    def _all_is_recorded(self) -> bool:
        newest: dict[str, int] = {}
        for name, _, seq, _, _ in ledgers.read_recorded(self.disk.folder):
            newest[name] = max(newest.get(name, 0), seq)
        return all(newest.get(name, 0) >= head.seq for name, head in self.heads().items())

    def finish(self) -> Result:
        """After `drain`: stop all processes, read all ledgers, check them."""
        collected, resent = ledgers.Ledgers(), 0
        with self._stuck_is_a_verdict("metrics"):
            # a machine with more to do than cores may take seconds to answer
            self.until(
                lambda: METRICS[0] in self._writer_metrics(), 30, "the writing gateway shows its metrics"
            )
            shown = ledgers.parse_metrics(self._writer_metrics(), (*METRICS, RESENT))
            resent, collected.metrics = int(sum(shown.pop(RESENT).values())), shown
        services = [name for role in ("gateway", "bars", "recorder", "relay") for name in self.of(role)]
        self.down.update(("app", *self.clients()))
        for name in services:
            self.terminate(name)
        for name in services:
            self.expect_clean_exit(name)
        collected.published, collected.heads = ledgers.read_published(self.backend.client, self.keys)
        collected.flushed = self.flushed
        if self.flushed:
            collected.published = ledgers.with_files(collected.published, self.disk.folder)
        collected.sent = ledgers.read_sent(self.folder / "sent.jsonl", self._spelled.__getitem__)
        collected.planted = ledgers.read_planted(self.folder / "planted.jsonl", self._spelled.__getitem__)
        collected.delivered = ledgers.read_delivered(self.folder / "delivered.jsonl")
        for name in self.clients():
            collected.relayed[name] = ledgers.read_delivered(self.folder / f"{name}.jsonl")
        if self.shape.recorders:
            collected.recorded = ledgers.read_recorded(self.disk.folder)
        result = check(collected, self.specs if self.shape.bars else (), _GRACE, _HORIZON)
        result.resent = resent
        result.verdicts += self.verdicts
        result.verdicts += self._tracebacks()
        result.memory = self.memory.most()
        result.verdicts += [Verdict("memory", name, text) for name, text in self.memory.exceeded()]
        return result

    def _tracebacks(self) -> list[Verdict]:
        found = []
        for log in sorted(self.folder.glob("*.log")):
            text = log.read_text(errors="replace")
            if "Traceback" in text:
                at = text.index("Traceback")
                found.append(Verdict("crashed", log.name, text[at : at + 1500]))
        return found


def faketime() -> Path | None:
    """Return the folder of libfaketime, if it is installed."""
    return next((path.parent for path in Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
