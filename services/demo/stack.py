"""The processes of the demo, and the order in which they start and stop."""

import asyncio
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from services.demo.children import Child, tickbus
from services.demo.folder import Folder
from services.demo.server import start_server
from tickbus.protocol.names import Keys

FEED = "demo"
SPECS = ("time:1s", "time:1m")
SEED = 10
"""A market whose first half minute has what signals look for."""
_METRICS = r"metrics on (http://\S+)"
_ENDED = r"market ended after (\d+) ticks"
_STOP_SECONDS = 12.0
_RELAY_PORT = 9400


class Stack:
    """Starts from the server to the recorder; stops from the source on, so that ticks in transit arrive."""

    def __init__(self, folder: Folder, keys: Keys, symbols: tuple[str, ...], market: Sequence[str]) -> None:
        """market: the simulator's options that say what it plays."""
        self._folder = folder
        self.keys = keys
        self.symbols = symbols
        self._market = market
        self.server: Child | None = None
        self.redis = ""
        self.metrics: dict[str, str] = {}
        """URL of the metrics by name of the service."""
        self.relay = ""
        """Address of the relay, `127.0.0.1:9400`."""
        self._simulator: Child | None = None
        self.services: list[Child] = []
        """In the order in which they are stopped."""

    async def start_server(self, program: Path) -> None:
        self.server, self.redis = await start_server(program, self._folder.redis, self._folder.log("server"))

    async def start_services(self) -> None:
        common = (
            "--redis", self.redis, "--prefix", self.keys.prefix, "--shards", str(self.keys.shards),
            "--stop-deadline", "3s",
        )  # fmt: skip
        self._simulator = await self._start("simulate", *self._market, "--start", "first-subscribe")
        address = (await self._simulator.wait_for(r"listening on (ws://\S+)"))[1]
        # AllTick's protocol: it has quotes, and no ids that would have to continue from the previous demo
        await self._start(
            "gateway", *common, "--feed", "alltick", "--name", FEED, "--url", address, "--token", "demo",
            "--kinds", "trade,quote", "--symbols", ",".join(self.symbols), "--retention", "1h",
            "--takeover-delay", "0s", "--spill-dir", str(self._folder.spill),
        )  # fmt: skip
        await self._start("bars", *common, "--specs", ",".join(SPECS))
        relay = await self._start("relay", *common, "--port", str(_relay_port()))
        self.relay = (await relay.wait_for(r"serving ws://([^/]+)/v1"))[1]
        await self._start("recorder", *common, "--data-dir", str(self._folder.data), "--flush-interval", "5s")
        for service in self.services:
            self.metrics[service.name] = (await service.wait_for(_METRICS))[1]

    async def _start(self, name: str, *args: str) -> Child:
        service = tickbus(name, self._folder.log(name), *args)
        self.services.append(service)
        await service.start()
        return service

    async def recording_ended(self) -> int:
        """Wait until the simulator has played the last tick of a recording; return how many it were."""
        while self._simulator is None or (ended := self._simulator.printed(_ENDED)) is None:
            await asyncio.sleep(0.5)
        return int(ended[1])

    async def watch(self) -> None:
        """Raise ChildDied when one of the processes exits."""
        children = [*self.services, *([self.server] if self.server is not None else [])]
        watching = [asyncio.create_task(child.watch()) for child in children]
        try:
            done, _ = await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    async def stop_services(self) -> None:
        for service in self.services:
            if service.name == "recorder":
                await self._wait_until_read(service)
            await service.stop(_STOP_SECONDS)

    async def stop_server(self) -> None:
        if self.server is not None:
            await self.server.stop(_STOP_SECONDS)

    async def _wait_until_read(self, recorder: Child) -> None:
        """Wait until the recorder has read the last entries of the services before it.

        It then records them when it stops, not at the next start.
        """
        before = -1.0
        for _ in range(20):
            if recorder.process is None or recorder.process.returncode is not None:
                return
            read = await asyncio.to_thread(_entries_read, self.metrics.get(recorder.name, ""))
            if read == before:
                return
            before = read
            await asyncio.sleep(0.1)


def _relay_port() -> int:
    """Return the relay's usual port, or 0 for any if somebody has that one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", _RELAY_PORT))
        except OSError:
            return 0
    return _RELAY_PORT


def _entries_read(url: str) -> float:
    """Return how many entries a service has read; 0 if it does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            match = re.search(
                r"^tickbus_consumer_read_total\{.*\} (\S+)$", answer.read().decode(), re.MULTILINE
            )
    except (OSError, ValueError, urllib.error.URLError):
        return 0.0
    return float(match[1]) if match else 0.0
