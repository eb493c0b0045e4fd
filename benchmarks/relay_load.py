"""Part `fanout`: a thousand clients of one relay under load, and whether slow ones delay the others.

Upstream, gateway, Redis and relay are the real processes. Windows with two slow clients (one that stops
reading, one at 1 kB/s) alternate with windows without them, in one and the same relay; two windows without
them are compared in the same way, and say how much a window differs from another one for no reason at all.
"""

import json
import os
import select
import threading
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from statistics import median

from benchmarks.figures import Part, percentile
from benchmarks.frames import symbols
from benchmarks.processes import PYTHON, BenchmarkError, Lab, Process, free_port, upstream, wait_until
from benchmarks.publishers import Tickbus
from benchmarks.relay_clients import RECORD, open_socket, text_frame
from services.relay.delivery import KERNEL_BYTES

SYMBOLS, RATE = 200, 5_000
BEAT = 4.0
"""Beats a second of a conflating client."""
_DECODERS = 20
_BOUND = 32 << 20
"""Of bytes in flight to one client: a machine that is busy for seconds must not end a lossless one."""
_SETTLE_SECONDS = 0.7
_START_SECONDS = 120
"""Most time until all clients are subscribed: the market goes on so much longer than the windows."""
_RING_BYTES = 64 << 20
_CLIENT_BYTES = 48 << 10
"""Of Python and asyncio, for a connection with one subscription."""
_TRIPLE = ("without", "with", "again")
"""Windows of a triple: with the slow clients, without them, and without them again."""


class _Requests:
    """What the clients ask for: a fifth of them all symbols, the others a tenth of these.

    One in 20 of the latter is lossless.
    """

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def request(self, number: int, lossless: bool, decode: bool) -> dict[str, object]:
        few = [self._names[(number + place) % len(self._names)] for place in range(len(self._names) // 10)]
        policy: dict[str, object] = (
            {"policy": "lossless"} if lossless else {"policy": "conflate", "rate": BEAT}
        )
        wide = number % 5 == 0
        return {
            "op": "subscribe", "id": 1, "symbols": self._names if wide else few, "decode": decode, **policy,
        }  # fmt: skip

    def decoders(self) -> list[dict[str, object]]:
        """Half of them lossless: their times are compared."""
        return [self.request(number, number % 2 == 0, True) for number in range(_DECODERS)]

    def counters(self, count: int) -> list[dict[str, object]]:
        return [self.request(number, number % 25 == 7, False) for number in range(count)]


def measure(lab: Lab, triples: int, clients: int = 1_000, seconds: float = 3.0, names: int = SYMBOLS) -> Part:
    part = Part(
        "fanout",
        f"{clients:,} clients of one relay, {names} symbols, {RATE:,} ticks/s, "
        f"{triples} triples of windows of {seconds:g} s",
    )
    lab.client.flushall()
    windows = 3 * triples
    count = int(RATE * (windows * (seconds + _SETTLE_SECONDS) + _START_SECONDS))
    texts = symbols(names)
    port, metrics = free_port(), free_port()
    relay_command = [
        PYTHON, "-m", "services.cli", "relay", "--redis", lab.url, "--port", str(port),
        "--log-level", "warning", "--metrics-port", str(metrics),
        "--client-bytes", f"{_BOUND >> 20}MB",
        "--max-clients-per-address", str(clients + 100),
    ]  # fmt: skip
    url = f"ws://127.0.0.1:{port}"
    paced = [
        "paced",
        "--dialect",
        "json",
        "--symbols",
        str(names),
        "--rate",
        str(RATE),
        "--count",
        str(count),
    ]
    with ExitStack() as stack:
        source = stack.enter_context(upstream(lab.folder, *paced))
        address = f"ws://127.0.0.1:{source.wait_event('port', 60)['port']}"
        publisher = Tickbus(feed="json").command(address, lab.url, texts, lab.folder)
        gateway = stack.enter_context(Process("publisher", publisher, lab.folder))
        sent = source.wait_event("first_sent", 120, needs=gateway)
        relay = stack.enter_context(Process("relay", relay_command, lab.folder))
        wait_until("the relay to listen", lambda: _listens(url), 30)
        empty = _resident(relay)
        requests = _Requests(texts)
        decoders = stack.enter_context(_clients(lab, url, "decoders", requests.decoders()))
        counters = stack.enter_context(_clients(lab, url, "counters", requests.counters(clients - _DECODERS)))
        for process in (decoders, counters):
            process.wait_event("ready", 240, needs=relay)
        programs = {"relay": relay, "upstream": source, "gateway": gateway, "decoders": decoders,
                    "counters": counters}  # fmt: skip
        cores = _pin(programs)
        began = {name: program.cpu_seconds() for name, program in programs.items()}
        redis_began, started = _redis_cpu(lab), time.monotonic()
        spans: dict[str, list[tuple[int, int]]] = {name: [] for name in _TRIPLE}
        watched = _Watch(relay, port)
        for number in range(triples):
            # the order changes, so that no kind always comes first
            for name in (*_TRIPLE[number % 3 :], *_TRIPLE[: number % 3]):
                with _slow_clients(url, texts) if name == "with" else nullcontext():
                    time.sleep(_SETTLE_SECONDS)
                    window = time.monotonic_ns()
                    watched.look()
                    time.sleep(seconds)
                    watched.look()
                    spans[name].append((window, time.monotonic_ns()))
        elapsed = time.monotonic() - started
        shares = {name: (program.cpu_seconds() - began[name]) / elapsed for name, program in programs.items()}
        shares["redis"] = (_redis_cpu(lab) - redis_began) / elapsed
        records = {}
        for name, process in (("decoders", decoders), ("counters", counters)):
            process.check_alive()
            assert process.popen.stdin is not None
            process.popen.stdin.write(b"end\n")
            process.popen.stdin.flush()
            process.wait_event("ended", 60)
            records[name] = lab.folder / f"{name}.records"
    _report_isolation(part, records["decoders"], spans, sent["stamp_offset"])
    _report_rates(part, records["decoders"], requests.decoders(), spans)
    _report_bytes(part, records["counters"], requests.counters(clients - _DECODERS), elapsed)
    watched.report(part, empty, clients)
    for name, share in shares.items():
        part.figure(f"{name}, core {cores.get(name, 'any')}", "of a core", [share])
    return part


# windows


def _report_isolation(part: Part, path: Path, spans: dict[str, list[tuple[int, int]]], offset: int) -> None:
    samples: dict[str, list[list[float]]] = {name: [[] for _ in found] for name, found in spans.items()}
    edges = sorted((begin, end, name, at) for name in spans for at, (begin, end) in enumerate(spans[name]))
    for _, _, received, time_ in _records(path):
        if time_:
            for begin, end, name, at in edges:
                if begin <= received < end:
                    samples[name][at].append((received + offset - time_) / 1000)
                    break
    if not all(window for windows in samples.values() for window in windows):
        raise BenchmarkError("a window had no trade: this machine is too slow for that many clients")
    p99, p50 = (
        {name: [percentile(sorted(window), share) for window in windows] for name, windows in samples.items()}
        for share in (0.99, 0.5)
    )
    for name, text in (("without", "without slow clients"), ("with", "beside slow clients")):
        part.figure(f"p50 of lossless clients, {text}", "us", p50[name])
        part.figure(f"p99 of lossless clients, {text}", "us", p99[name])
    control = median(again / one for again, one in zip(p99["again"], p99["without"], strict=True))
    decided = 1 / 1.05 <= control <= 1.05
    part.ratio("p99 without / without (control)", p99["again"], p99["without"])
    part.ratio(
        "p99 with / without slow clients", p99["with"], p99["without"], 1.1 if decided else None, at_most=True
    )
    if not decided:
        part.notes.append(f"not decided: two windows without slow clients differ by {control:.3f}, not 1.05")


def _report_rates(
    part: Part, path: Path, requests: list[dict[str, object]], spans: dict[str, list[tuple[int, int]]]
) -> None:
    """Whether each decoding client got each of its symbols as often as it asked for."""
    begin, end = spans["without"][0][0], max(found[-1][1] for found in spans.values())
    counts: Counter[tuple[int, int]] = Counter()
    trades: Counter[int] = Counter()
    for client, place, received, time_ in _records(path):
        if begin <= received < end:
            if time_:
                trades[client] += 1
            else:
                counts[client, place] += 1
    rates = []
    for number, request in enumerate(requests):
        names = request["symbols"]
        assert isinstance(names, list)
        if request["policy"] == "conflate":
            rates += [counts[number, place] / ((end - begin) / 1e9) for place in range(len(names))]
    part.figure("lowest rate of a symbol, conflating at 4/s", "1/s", [min(rates)])
    part.figure("median rate of a symbol, conflating at 4/s", "1/s", [median(rates)])
    part.figure("highest rate of a symbol, conflating at 4/s", "1/s", [max(rates)])
    part.figure(
        "trades to a lossless client of all symbols", "1/s", [max(trades.values()) / ((end - begin) / 1e9)]
    )
    part.notes.append(
        f"{len(trades)} lossless clients decoded {sum(trades.values()):,} trades without a hole"
    )


def _report_bytes(part: Part, path: Path, requests: list[dict[str, object]], seconds: float) -> None:
    """Clients that asked for the same got about the same."""
    totals = json.loads(path.with_suffix(".bytes").read_text())
    kinds: dict[tuple[object, int], list[float]] = defaultdict(list)
    for request, total in zip(requests, totals, strict=True):
        names = request["symbols"]
        assert isinstance(names, list)
        kinds[request["policy"], len(names)].append(total / seconds)
    for (policy, names), rates in sorted(kinds.items(), key=str):
        part.figure(f"{len(rates)} {policy} clients of {names} symbols", "B/s each", [median(rates)])
        part.ratio(f"least / median of them ({policy}, {names})", [min(rates)], [median(rates)], wanted=0.85)


def _records(path: Path) -> Iterator[tuple[int, int, int, int]]:
    values = iter(array("q", path.read_bytes()))
    while row := tuple(islice(values, RECORD)):
        yield row  # type: ignore[misc]


# processes


@contextmanager
def _clients(lab: Lab, url: str, name: str, requests: list[dict[str, object]]) -> Iterator[Process]:
    command: list[str | Path] = [
        PYTHON,
        "-m",
        "benchmarks.relay_clients",
        url,
        lab.folder / f"{name}.records",
    ]
    with Process(name, command, lab.folder) as process:
        assert process.popen.stdin is not None
        for request in requests:
            process.popen.stdin.write(json.dumps(request).encode() + b"\n")
        process.popen.stdin.write(b"go\n")
        process.popen.stdin.flush()
        yield process


@contextmanager
def _slow_clients(url: str, names: list[str]) -> Iterator[None]:
    """One client that stops reading, and one that reads 1 kB a second; both want everything."""
    over = threading.Event()
    stalled, slow = open_socket(url, 8 << 10), open_socket(url, 8 << 10)

    def read() -> None:
        slow.setblocking(False)
        while not over.wait(0.1):
            if select.select([slow], [], [], 0)[0]:
                slow.recv(100)

    request = {"op": "subscribe", "id": 1, "symbols": names}
    stalled.sendall(text_frame(json.dumps(request | {"policy": "drop"}).encode()))
    slow.sendall(text_frame(json.dumps(request | {"policy": "conflate", "rate": BEAT}).encode()))
    reading = threading.Thread(target=read)
    reading.start()
    try:
        yield
    finally:
        over.set()
        reading.join()
        stalled.close()
        slow.close()


def _pin(programs: dict[str, Process]) -> dict[str, str]:
    """Keep the relay on one core, if there are enough for the others. Return who has which."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 4:
        return {}
    os.sched_setaffinity(programs["relay"].popen.pid, {cores[-1]})
    return {"relay": str(cores[-1])}


def _listens(url: str) -> bool:
    try:
        open_socket(url).close()
    except OSError:
        return False
    return True


def _redis_cpu(lab: Lab) -> float:
    info = lab.client.info("cpu")
    assert isinstance(info, dict)
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def _resident(process: Process) -> int:
    text = Path(f"/proc/{process.popen.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) << 10


class _Watch:
    """The memory of the relay, and what the kernel holds for its clients."""

    def __init__(self, relay: Process, port: int) -> None:
        self._relay = relay
        self._port = f":{port:04X}"
        self._most = 0
        self._kernel: list[int] = []
        self._fullest = 0

    def look(self) -> None:
        self._most = max(self._most, _resident(self._relay))
        queues = []
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(self._port):
                queues.append(int(fields[4].partition(":")[0], 16))
        self._kernel.append(sum(queues))
        self._fullest = max(self._fullest, *queues)

    def report(self, part: Part, empty: int, clients: int) -> None:
        budget = empty + int(1.5 * _RING_BYTES) + clients * _CLIENT_BYTES
        part.figure("relay's memory without clients", "MB", [empty / 1e6])
        part.figure("relay's memory, most", "MB", [self._most / 1e6])
        part.figure("kernel's send queues of all clients", "kB", [size / 1e3 for size in self._kernel])
        part.ratio("relay's memory / its budget", [self._most], [budget], 1, at_most=True)
        part.ratio("fullest send queue / its bound", [self._fullest], [KERNEL_BYTES], 1, at_most=True)
        if not self._most:
            raise BenchmarkError("nothing was looked at")
