"""A running simulator on a free port, and clients for it from the `websockets` library."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.paths import DATA
from support.waiting import until_async
from websockets.asyncio.client import ClientConnection, connect

from services.simulator.main import Options, build
from services.simulator.simulator import Simulator


@dataclass
class Venue:
    """The simulator as a client and its operator see it."""

    simulator: Simulator
    url: str
    path: Path

    def connect(self, target: str, **options: Any) -> connect:
        # a client that leaves frames unread will never see a close frame
        return connect(
            self.url + target,
            **{"compression": None, "max_size": None, "ping_interval": None, "close_timeout": 0.1} | options,
        )

    def command(self, line: str) -> str:
        return self.simulator.command(line)

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of the ledger."""
        self.simulator.flush()
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def ticks(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if "n" in line]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line.get("event") == name]

    async def until(self, condition: Callable[[], bool]) -> None:
        await until_async(condition, 10)  # a file or an internal state: nothing notifies


@dataclass
class Client:
    """Sends and receives JSON."""

    socket: ClientConnection

    async def send(self, message: object) -> None:
        await self.socket.send(json.dumps(message))

    async def request(self, message: object) -> Any:
        """Send a message and return the next frame."""
        await self.send(message)
        return await self.next()

    async def raw(self) -> str | bytes:
        """Return the next frame undecoded."""
        async with asyncio.timeout(10):
            return await self.socket.recv()

    async def next(self) -> Any:
        return json.loads(await self.raw())

    async def take(self, count: int) -> list[Any]:
        return [await self.next() for _ in range(count)]


Running = Callable[..., AbstractAsyncContextManager[Venue]]


@pytest.fixture
def venue(tmp_path: Path) -> Running:
    """Return a context manager that runs a simulator: `async with venue(speed="max", ...) as sim:`."""

    @asynccontextmanager
    async def running(**options: Any) -> AsyncIterator[Venue]:
        path = tmp_path / "ledger.jsonl"
        simulator = build(Options(ledger=path, **options))
        async with simulator.listening("127.0.0.1", 0) as port:
            task = asyncio.create_task(simulator.run())
            try:
                yield Venue(simulator, f"ws://127.0.0.1:{port}", path)
            finally:
                task.cancel()
                await asyncio.wait((task,))

    return running


@pytest.fixture
def client() -> type[Client]:
    return Client


@pytest.fixture
def data() -> Path:
    """The real captures beside the repository."""
    if not DATA.is_dir():
        pytest.skip(f"no captures in {DATA}")
    return DATA
