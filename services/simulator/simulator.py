"""The simulator put together: one market, its clock, the hub that sends it, the faults, the ledger, the listening socket."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from services.simulator.connection import log
from services.simulator.faults import Fault, Plan, parse_faults
from services.simulator.hub import Hub
from services.simulator.inject import fire
from services.simulator.ledger import Ledger
from services.simulator.market import Market
from services.simulator.source import Source
from services.simulator.tick_faults import TickFaults
from services.vendors.dialect import VendorLimits
from services.vendors.options import VendorOptions
from tickbus.errors import ConfigError
from tickbus.units import MILLISECOND, SECOND

_BATCH = 512
"""Ticks between two looks at everything else."""
_NAP = 50 * MILLISECOND
"""Longest wait for nothing in particular: also how fine mutes and settling are watched."""

_PARTING_SECONDS = 0.5


@dataclass
class Pace:
    """When the market goes on."""

    at_max: bool
    """As fast as the clients take it; else by its clock, whoever listens."""
    wait_for_subscriber: bool
    """Before the first tick."""
    settle: int = 0
    """Start, and at max go on, only when no subscription has changed for so long, ns."""
    open_now: Callable[[int], bool] = lambda wall: True
    """Whether the session is on at this wall time, ns."""


class Simulator:
    def __init__(
        self,
        source: Source,
        market: Market,
        pace: Pace,
        limits: VendorLimits,
        options: Mapping[str, VendorOptions],
        ledger: Ledger | None,
        seed: int = 0,
    ) -> None:
        """`options`: of the vendors' servers, by vendor."""
        self._source = source
        self._market = market
        self._pace = pace
        self._wake = asyncio.Event()
        self._ledger = ledger
        self._hub = Hub(limits, options, ledger, source.open, self._wake.set)
        self._plan = Plan()
        self._waiting_faults: list[Fault] = []
        self._tampering = TickFaults()
        self._junk = random.Random(seed)
        self._started = False
        self._ended = False

    def plan(self, faults: list[Fault]) -> None:
        """Faults of the command line: counted from the market's start."""
        self._waiting_faults = faults

    def command(self, line: str) -> str:
        """One line of standard input -> the line that answers it."""
        if line.strip() == "status":
            connections = self._hub.connections
            slow = sum(connection.paused for connection in connections)
            return f"ok ticks={self._plan.offered} connections={len(connections)} slow={slow} ended={str(self._ended).lower()}"
        try:
            faults = parse_faults(line)
        except ConfigError as error:
            return f"error: {error}"
        if not faults:
            return "error: empty line; write a fault like `mute=5s`, or status"
        for fault in faults:
            self._plan.add(fault, time.monotonic_ns())
        self._fire_due()
        self._wake.set()
        return "ok " + "; ".join(map(str, faults))

    @asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[int]:
        """Listen while the block runs; -> the port. At the end everybody is sent away and the ledger is complete."""
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(self._hub.accept, host, port)
        except OSError as error:
            raise ConfigError(
                f"--port {port}: cannot listen on {host}: {error.strerror}; choose another"
            ) from None
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            self._hub.dismiss()
            await self._parting()
            if self._ledger is not None:
                self._ledger.close()

    def flush(self) -> None:
        """The ledger as it stands, on disk."""
        if self._ledger is not None:
            self._ledger.flush()

    async def run(self) -> None:
        """The market, and what goes by the clock. Never returns; a source that cannot be read on raises."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat())
            tasks.create_task(self._trade())

    async def _trade(self) -> None:
        while True:
            self._wake.clear()
            now = time.monotonic_ns()
            self._fire_due()
            if not self._goes_on(now):
                self._market.stand_still(now)
                await self._sleep(_NAP)
                continue
            self._begin(now)
            room = self._plan.room()
            ticks = self._market.due(now, time.time_ns(), _BATCH if room is None else min(_BATCH, room))
            if ticks:
                self._plan.offered += len(ticks)
                self._hub.send(self._tampering.apply(ticks) if self._tampering.active else ticks)
                # let sockets be read: this is also where a full transport says so
                await asyncio.sleep(0)
            if self._market.ended:
                self._end()
            elif not ticks:
                await self._sleep(self._market.wait(now) or 0)

    def _goes_on(self, now: int) -> bool:
        """Whether the market's clock runs now."""
        pace, listening = self._pace, self._hub.listening()
        if self._ended or self._source.idle or not pace.open_now(time.time_ns()):
            return False
        settled = now - self._hub.settled_since >= pace.settle
        if pace.at_max:
            return bool(listening) and settled and not any(connection.paused for connection in listening)
        return self._started or not pace.wait_for_subscriber or (bool(listening) and settled)

    def _begin(self, now: int) -> None:
        if not self._started:
            self._started = True
            self._hub.tell({"event": "start"})
            for fault in self._waiting_faults:
                self._plan.add(fault, now)
            self._fire_due()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._hub.send(self._tampering.flush())
            self._hub.tell({"event": "end", "ticks": self._plan.offered})
            log.info(
                "simulate: the market has ended after %d ticks; connections stay open", self._plan.offered
            )

    async def _sleep(self, ns: int) -> None:
        """Until woken, a fault is due, or `ns` have passed."""
        fault = self._plan.wait(time.monotonic_ns())
        timer = asyncio.get_running_loop().call_later(
            min(ns, _NAP, fault if fault is not None else ns) / SECOND, self._wake.set
        )
        await self._wake.wait()
        timer.cancel()

    async def _beat(self) -> None:
        """Pings, timeouts, and the ledger's second."""
        flushed = time.monotonic_ns()
        while True:
            await asyncio.sleep(0.1)
            now = time.monotonic_ns()
            for connection in self._hub.connections:
                connection.beat(now)
            if self._ledger is not None and now - flushed >= SECOND // 2:
                self._ledger.flush()
                flushed = now

    async def _parting(self) -> None:
        """A moment for the clients to answer the close frames."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_PARTING_SECONDS):
                while self._hub.any_open:
                    self._wake.clear()
                    await self._wake.wait()
        self._hub.cut_all()
        # a turn of the loop, in which those connections tell that they are lost
        await asyncio.sleep(0)

    # faults

    def _fire_due(self) -> None:
        for fault in self._plan.due(time.monotonic_ns()):
            self._hub.tell({"event": "fault", "fault": str(fault), "tick": self._plan.offered})
            fire(fault, self._hub, self._tampering, self._junk)
