"""What the demo runs, and in which order it begins and ends."""

import asyncio
import re
import urllib.error
import urllib.request
from pathlib import Path

from services.demo.children import Child, part
from services.demo.folder import Folder
from services.demo.server import start_server
from tickbus.protocol.names import Keys

FEED = "demo"
SPECS = ("time:1s", "time:1m")
_METRICS = r"metrics on (http://\S+)"
_STOP_SECONDS = 12.0


class Stack:
    """Started from the server to the recorder; stopped from the source on, so that what is under way arrives."""

    def __init__(self, folder: Folder, keys: Keys, symbols: tuple[str, ...], rate: int) -> None:
        self._folder = folder
        self.keys = keys
        self._symbols = symbols
        self._rate = rate
        self.server: Child | None = None
        self.redis = ""
        self.metrics: dict[str, str] = {}
        """Part -> URL of its metrics."""
        self.parts: list[Child] = []
        """In the order in which they are stopped. A relay would stand before the recorder."""

    async def start_server(self, program: Path) -> None:
        self.server, self.redis = await start_server(program, self._folder.redis, self._folder.log("server"))

    async def start_parts(self) -> None:
        common = (
            "--redis",
            self.redis,
            "--prefix",
            self.keys.prefix,
            "--shards",
            str(self.keys.shards),
            "--stop-deadline",
            "3s",
        )
        simulator = await self._start("simulate", "--rate", str(self._rate), "--start", "first-subscribe")
        address = (await simulator.says(r"listening on (ws://\S+)"))[1]
        # AllTick's protocol: it has quotes, and no ids that would have to go on from the demo before
        await self._start(
            "gateway", *common, "--feed", "alltick", "--name", FEED, "--url", address, "--token", "demo", "--kinds", "trade,quote",
            "--takeover-delay", "0s", "--spill-dir", str(self._folder.spill),
            "--symbols", ",".join(self._symbols), "--retention", "1h",
        )  # fmt: skip
        await self._start("bars", *common, "--specs", ",".join(SPECS))
        await self._start("recorder", *common, "--data-dir", str(self._folder.data), "--flush-interval", "5s")
        for child in self.parts:
            self.metrics[child.name] = (await child.says(_METRICS))[1]

    async def _start(self, name: str, *args: str) -> Child:
        child = part(name, self._folder.log(name), *args)
        self.parts.append(child)
        await child.start()
        return child

    async def died(self) -> None:
        """Raises ChildDied when one of them ends; runs until then."""
        children = [*self.parts, *([self.server] if self.server is not None else [])]
        watching = [asyncio.create_task(child.ended()) for child in children]
        try:
            done, _ = await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    async def stop_parts(self) -> None:
        for child in self.parts:
            if child.name == "recorder":
                await self._until_read(child)
            await child.stop(_STOP_SECONDS)

    async def stop_server(self) -> None:
        if self.server is not None:
            await self.server.stop(_STOP_SECONDS)

    async def _until_read(self, recorder: Child) -> None:
        """Until the recorder has read what the parts before it wrote last: it then writes it at its end, not at the next start."""
        before = -1.0
        for _ in range(20):
            if recorder.process is None or recorder.process.returncode is not None:
                return
            read = await asyncio.to_thread(_read_so_far, self.metrics.get(recorder.name, ""))
            if read == before:
                return
            before = read
            await asyncio.sleep(0.1)


def _read_so_far(url: str) -> float:
    """Entries that a service has read; 0 if it does not say."""
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            match = re.search(
                r"^tickbus_consumer_read_total\{.*\} (\S+)$", answer.read().decode(), re.MULTILINE
            )
    except (OSError, ValueError, urllib.error.URLError):
        return 0.0
    return float(match[1]) if match else 0.0
