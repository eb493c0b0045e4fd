"""Alerts on the bus, as a signal service writes them, and a notify service for them."""

import base64
import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.bus import Server
from support.processes import Process
from support.webhook import Request
from support.writing import Writer

from tickbus.protocol.codec import encode
from tickbus.protocol.messages import Gap, Signal, SignalState
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.writer.entry import Entry

KEYS = Keys()
FEED = "watch"
"""The service that writes the signals."""
KEY = bytes(range(7, 39))
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
Start = Callable[..., Process]


def signal(
    number: int, symbol: str = "BTC-USDT", state: SignalState | None = None, name: str = "spread"
) -> Signal:
    """Odd numbers start an episode, the next even one ends it."""
    if state is None:
        state = SignalState.START if number % 2 else SignalState.END
    episode = 0 if state is SignalState.INDICATOR else (number + 1) // 2
    return Signal(
        name, f"{number}.5", "2", "1m", f"alert {number}", symbol, 1_795_845_600_000_000_000 + number, state,
        1, "bp", ("has_gap",) if number % 3 == 0 else (), episode, "1795845600000-7", 3, (("z", "4.1"),),
    )  # fmt: skip


class Alerts(Writer):
    """Writes signals; each has the bus time that the test gives, or now."""

    def __init__(self, url: str) -> None:
        super().__init__(url, FEED, KEYS)

    async def open(self) -> "Alerts":
        await super().open()
        return self

    async def add(self, *messages: Signal | Gap, age_ms: int = 0) -> list[str]:
        """Store signals `age_ms` old and return their IDs."""
        entries = []
        for message in messages:
            entry = self.entry(Stream("signal", FEED, message.symbol), message)
            entries.append(Entry(entry.stream, entry.ms - age_ms, entry.seq, entry.field, encode(message)))
        await self.publisher.commit(self.transaction(entries))
        return [str(entry.id) for entry in entries]

    async def add_numbers(self, numbers: range, symbol: str = "BTC-USDT", age_ms: int = 0) -> list[str]:
        return await self.add(*(signal(number, symbol) for number in numbers), age_ms=age_ms)


def receiver_file(folder: Path, url: str, name: str = "ops", **more: Any) -> Path:
    path = folder / f"{name}.toml"
    settings = {"name": name, "url": url, "secret": SECRET, "backoff": "50ms", "backoff_max": "200ms", **more}
    lines = [
        f"{key} = {value if isinstance(value, list | int) else _quoted(value)}"
        for key, value in settings.items()
    ]
    path.write_text("\n".join(lines))
    return path


def _quoted(value: object) -> str:
    return f'"{value}"'


def start_notify(start: Start, redis: Server, file: Path, *more: str) -> Process:
    return start("notify", "--redis", redis.url, "--receiver", str(file), "--lease-ttl", "500ms", *more)


def is_signed(request: Request, key: bytes = KEY) -> bool:
    """Whether a request is signed as Standard Webhooks says; written from its text, not from our code."""
    id, timestamp = request.headers["webhook-id"], request.headers["webhook-timestamp"]
    mac = hmac.digest(key, id.encode() + b"." + timestamp.encode() + b"." + request.raw, hashlib.sha256)
    return f"v1,{base64.b64encode(mac).decode()}" in request.headers["webhook-signature"].split(" ")


def expected_key(redis: Server, id: str, symbol: str = "BTC-USDT") -> str:
    era = redis.client.get(KEYS.era(KEYS.shard(symbol)))
    assert era is not None
    return f"{era.decode()}:signal:{FEED}:{symbol}:{id}"


def position(redis: Server, symbol: str = "BTC-USDT", name: str = "ops") -> StreamId | None:
    value = redis.client.hget(KEYS.position(KEYS.shard(symbol), f"notify-{name}"), f"signal:{FEED}:{symbol}")
    return None if value is None else StreamId.parse(value)


def dead_letters(
    redis: Server, symbol: str = "BTC-USDT", name: str = "ops"
) -> list[tuple[str, dict[str, str]]]:
    key = f"tickbus:{{{KEYS.shard(symbol):02d}}}:dead:notify-{name}:signal:{FEED}:{symbol}"
    return [
        (id.decode(), {field.decode(): value.decode(errors="replace") for field, value in fields.items()})
        for id, fields in redis.client.xrange(key)
    ]
