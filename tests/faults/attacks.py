"""The family `attack`: what a hostile vendor, client or neighbour does, and what must come of it.

Each row states what is expected beside what holds for all: nothing lost or doubled in silence, nothing stored
that nobody sent, no process ended, memory within bounds (faults.memory). How a row is injected is in
`support.attacker` for vendors, and here for the rest.
"""

import json
import re
import resource
import shlex
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from redis import ResponseError
from support.processes import tickbus

from faults.system import System
from tickbus.protocol.names import Stream

Act = Callable[[System, str], None]

HALF_REQUESTS = 300
_OPEN_SECONDS = 3.0
"""A process without descriptors accepts none of them: then fewer are opened."""
_ANSWER_SECONDS = 15.0
"""A service whose endpoint is full of half requests answers the next whole one within this."""
FUTURE = "9999999999999-1"
"""The ID of an entry of the year 2286."""
_KILLS = 10
FOREIGN_STREAMS = (b"trade:x:Y", b"x", b"", b"\xff\xfe", b"bar:time:1m", b"quote:binance:")


def nothing(system: System, target: str) -> None:
    pass


def attacker(line: str, system: System, target: str) -> None:
    assert system.attacker is not None
    system.attacker.command(line)


# the endpoint of a service


def half_requests(system: System, target: str) -> None:
    """Open hundreds of connections that never end their request."""
    _allow_files()
    part = target.removeprefix("http-")
    port = system.parts[part].metrics_port
    held = system.held.setdefault(target, [])
    until = time.monotonic() + _OPEN_SECONDS
    for _ in range(HALF_REQUESTS):
        if time.monotonic() > until:
            break
        with suppress(OSError):
            held.append(socket.create_connection(("127.0.0.1", port), 0.2))
            held[-1].send(b"GET /metrics HTTP/1.1\r\nX: ")


def end_requests(system: System, target: str) -> None:
    part = target.removeprefix("http-")
    files_again(system, f"redis-{part}")  # another attack, beside which nothing can be answered
    try:
        system.until(
            lambda: system.get(part, "/healthz")[0] == 200,
            _ANSWER_SECONDS,
            f"{part} answers /healthz beside them",
        )
    finally:
        for one in system.held.pop(target, ()):
            one.close()


def _allow_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# files


def no_files(system: System, link: str) -> None:
    """No descriptor is left for the process, and its connection to Redis is cut."""
    pid = system.parts[link.removeprefix("redis-")].process.pid
    _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    system.limited[link] = pid
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(used, most), most))
    system.proxy.command(f"cut {link}")
    # the descriptors that the cut has freed: they are not to be had either
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, most))


def files_again(system: System, link: str) -> None:
    with suppress(ProcessLookupError, KeyError):
        pid = system.limited.pop(link)
        _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))


# Redis


def kill_storm(system: System, target: str) -> None:
    for _ in range(_KILLS):
        system.redis.client.client_kill_filter(_type="normal", skipme=True)
        time.sleep(0.1)  # a storm: some are in the middle of connecting again, some have not begun


def foreign_bells(system: System, target: str) -> None:
    """Ring every doorbell with what is no ring, in several forms, one of them of the future."""
    client = system.redis.client
    for shard in sorted({system.keys.shard(symbol) for symbol in system.symbols}):
        bell = system.keys.bell(shard)
        for payload in (
            b"garbage",
            b"",
            b"\x95\xa1x\xff\xff\xff\xff",
            b"\xc1",
            b"\x95\xa1x\x01\x01\xc3\x91\xa1\xff",
        ):
            client.xadd(bell, {"d": payload})
        client.xadd(bell, {"d": b"x", "e": b"y"})
        client.xadd(bell, {"": b""})
    with suppress(ResponseError):  # it is there already
        client.xadd(system.keys.bell(system.keys.shard(system.symbols[0])), {"d": b"later"}, id=FUTURE)


def foreign_heads(system: System, target: str) -> None:
    """Put what is no head into `last`: under names that are no streams, and in place of a real one."""
    client = system.redis.client
    for shard in range(system.keys.shards):
        for name in FOREIGN_STREAMS:
            client.hset(system.keys.last(shard), name, b"junk")
    symbol = system.symbols[1]
    client.hset(system.keys.last(system.keys.shard(symbol)), f"trade:binance:{symbol}", b"\xc1junk")


def remove_heads(system: System, target: str) -> None:
    for shard in range(system.keys.shards):
        system.redis.client.hdel(system.keys.last(shard), *FOREIGN_STREAMS)


def _topped(system: System) -> str:
    return system.keys.stream(Stream("trade", "binance", system.symbols[2]))


def _gateway_logs(system: System) -> dict[str, str]:
    return {
        name: (system.folder / f"{name}.log").read_text(errors="replace") for name in system.of("gateway")
    }


def foreign_top(system: System, target: str) -> None:
    """Add an entry of the future to a tick stream: nothing of ours can be added behind it."""
    system.logged = {name: len(text) for name, text in _gateway_logs(system).items()}
    system.redis.client.xadd(_topped(system), {"t": b"junk"}, id=FUTURE)


def mend_top(system: System, target: str) -> None:
    """Run the command that the gateway's log names, or `tickbus status` while it has nothing to write."""
    command = re.compile(rf"{re.escape(_topped(system))}: .*; fix: redis-cli (EVAL .*?)(?:; until then|$)")
    remedy = ""

    def is_named() -> bool:
        nonlocal remedy
        texts = [text[system.logged.get(name, 0) :] for name, text in _gateway_logs(system).items()]
        found = [line for text in texts for line in command.findall(text)]
        if not found:
            shown = json.loads(tickbus("status", "--json", "--redis", system.redis.url).stdout or "{}")
            found = [line for fault in shown.get("faults", ()) for line in command.findall(fault)]
        remedy = found[-1] if found else ""
        return bool(found)

    system.until(is_named, _ANSWER_SECONDS, "the command that mends the stream is named")
    port = str(system.redis.port)
    subprocess.run(["redis-cli", "-p", port, *shlex.split(remedy)], check=True, capture_output=True)
    system.redis.client.delete(f"{_topped(system)}:foreign")


def foreign_types(system: System, target: str) -> None:
    """Put keys of other types beside ours, and one in place of a doorbell and of a list of members."""
    client = system.redis.client
    shard = system.keys.shard(system.symbols[3])
    tag = system.keys.bell(shard).removesuffix("bell")
    client.set(f"{tag}trade:x:Y", "text")
    client.execute_command("RPUSH", f"{tag}position:x", "a list")
    client.set(f"{system.keys.prefix}:members:x", "text")
    for key in (system.keys.bell(shard), system.keys.members("bars")):
        client.delete(key)
        client.set(key, "text")


def remove_types(system: System, target: str) -> None:
    client = system.redis.client
    shard = system.keys.shard(system.symbols[3])
    tag = system.keys.bell(shard).removesuffix("bell")
    client.delete(
        f"{tag}trade:x:Y", f"{tag}position:x", f"{system.keys.prefix}:members:x",
        system.keys.bell(shard), system.keys.members("bars"),
    )  # fmt: skip


def reset_ids(system: System, target: str) -> None:
    system.parts["simulator"].send_line("reset=1000000")


_STOP = partial(attacker, "stop")
VENDOR: dict[str, tuple[tuple[float, float], Act, Act, str]] = {
    "pings": (
        (2.0, 4.0),
        partial(attacker, "pings"),
        _STOP,
        "what is owed is bounded: connection ended, a Gap",
    ),
    "fragments": (
        (2.0, 4.0),
        partial(attacker, "fragments"),
        _STOP,
        "pieces are bounded: connection ended, a Gap",
    ),
    "handshake": (
        (2.0, 4.0),
        partial(attacker, "handshake"),
        _STOP,
        "refused at the bound for headers, tried again",
    ),
    "body": ((2.0, 4.0), partial(attacker, "body"), _STOP, "refused at the bound for bodies, tried again"),
    "garbage": (
        (0.1, 0.2),
        partial(attacker, "garbage 20"),
        nothing,
        "each logged or rejected; the connection stays",
    ),
    "damaged": (
        (0.1, 0.2),
        partial(attacker, "damaged 20"),
        nothing,
        "each rejected; the originals are stored once",
    ),
    "errors": (
        (0.1, 0.2),
        partial(attacker, "errors 5"),
        nothing,
        "a WARNING with the vendor's words; delivery goes on",
    ),
    "arrays": (
        (0.1, 0.2),
        partial(attacker, "arrays 10"),
        nothing,
        "taken tick by tick, or rejected with a Gap",
    ),
    "jump": ((0.1, 0.2), partial(attacker, "jump 1"), nothing, "the false hole is withdrawn"),
    "repeats": (
        (0.1, 0.2),
        partial(attacker, "repeats 10"),
        nothing,
        "stored once at most, doubtful; the sequence goes on",
    ),
    "fallen": (
        (0.1, 0.2),
        partial(attacker, "fallen 3"),
        nothing,
        "each stored once, doubtful; the sequence goes on, nothing is missing",
    ),
    "reset": ((0.1, 0.2), reset_ids, nothing, "one Gap `reset`, every trade stored"),
    "timeless": (
        (0.1, 0.2),
        partial(attacker, "timeless 10"),
        nothing,
        "stored with the receive time, flagged bad_time",
    ),
}
"""Name -> seconds, inject, heal, expectation."""

REDIS: dict[str, tuple[tuple[float, float], Act, Act, str]] = {
    "kill-storm": ((1.0, 1.5), kill_storm, nothing, "everybody reconnects; nothing is lost"),
    "bells": ((0.5, 1.0), foreign_bells, nothing, "no rings: the streams are swept"),
    "heads": ((0.5, 2.0), foreign_heads, remove_heads, "skipped; a real one is rebuilt by its writer"),
    "top": ((1.0, 3.0), foreign_top, mend_top, "this stream waits until it is mended, the others go on"),
    "types": ((0.5, 2.0), foreign_types, remove_types, "reported; all goes on when it is mended"),
}
HTTP = "answers the next whole request within 15 s; its work goes on"
FILES = "an outage of Redis like any other: it reconnects when there are descriptors again"
