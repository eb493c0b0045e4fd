"""The assembled simulator: market and clock, the hub that sends it, faults, ledger and listening socket."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from services.simulator.connection import log
from services.simulator.faults import Fault, FaultSchedule, parse_faults
from services.simulator.hub import Hub
from services.simulator.inject import inject
from services.simulator.ledger import Ledger
from services.simulator.market import Market
from services.simulator.source import Source
from services.simulator.tick_faults import TickFaults
from services.vendors.dialect import VendorLimits
from services.vendors.options import VendorOptions
from tickbus.errors import ConfigError
from tickbus.units import MILLISECOND, SECOND

_BATCH = 512
"""Maximum number of ticks between two checks of everything else."""
_MAX_SLEEP = 50 * MILLISECOND
"""Longest wait for nothing in particular: also the resolution at which mutes and settling are checked."""

_CLOSE_TIMEOUT_SECONDS = 0.5


@dataclass
class Pace:
    """When the market advances."""

    at_max: bool
    """As fast as the clients read; else by its clock, regardless of them."""
    wait_for_subscriber: bool
    """Before the first tick."""
    settle: int = 0
    """Start, and at max resume, only after this long without a subscription change, ns."""
    is_open: Callable[[int], bool] = lambda wall: True
    """Whether the trading session is open at this wall time, ns."""


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
        """options: the server options by vendor. seed: of the garbage that faults send."""
        self._source = source
        self._market = market
        self._pace = pace
        self._wake = asyncio.Event()
        self._ledger = ledger
        self._hub = Hub(limits, options, ledger, source.open, self._wake.set)
        self._schedule = FaultSchedule()
        self._faults_from_start: list[Fault] = []
        self._tick_faults = TickFaults()
        self._rng = random.Random(seed)
        self._started = False
        self._ended = False

    def schedule(self, faults: list[Fault]) -> None:
        """Schedule the faults of the command line, counted from the market's start."""
        self._faults_from_start = faults

    def command(self, line: str) -> str:
        """Execute one line of standard input. Return the line that answers it."""
        if line.strip() == "status":
            connections = self._hub.connections
            slow = sum(connection.paused for connection in connections)
            ended = str(self._ended).lower()
            return f"ok ticks={self._schedule.ticks} connections={len(connections)} slow={slow} ended={ended}"
        try:
            faults = parse_faults(line)
        except ConfigError as error:
            return f"error: {error}"
        if not faults:
            return "error: empty line: expected a fault, e.g. `mute=5s`, or status"
        for fault in faults:
            self._schedule.add(fault, time.monotonic_ns())
        self._inject_due()
        self._wake.set()
        return "ok " + "; ".join(map(str, faults))

    @asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[int]:
        """Listen while the block runs; yield the port. At the end, close all connections and the ledger."""
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(self._hub.accept, host, port)
        except OSError as error:
            raise ConfigError(
                f"--port {port}: cannot listen on {host}: {error.strerror}; choose another port or --host"
            ) from None
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            self._hub.close_all()
            await self._wait_for_closes()
            if self._ledger is not None:
                self._ledger.close()

    def flush(self) -> None:
        """Write the ledger to disk."""
        if self._ledger is not None:
            self._ledger.flush()

    async def run(self) -> None:
        """Run the market, the timers and the faults. Never returns; raises if the source cannot be read."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run_timers())
            tasks.create_task(self._run_market())

    async def _run_market(self) -> None:
        while True:
            self._wake.clear()
            now = time.monotonic_ns()
            self._inject_due()
            if not self._should_run(now):
                self._market.pause(now)
                await self._sleep(_MAX_SLEEP)
                continue
            self._start(now)
            until_fault = self._schedule.ticks_until_due()
            max_ticks = _BATCH if until_fault is None else min(_BATCH, until_fault)
            ticks = self._market.due(now, time.time_ns(), max_ticks)
            if ticks:
                self._schedule.ticks += len(ticks)
                self._hub.send(self._tick_faults.apply(ticks) if self._tick_faults.active else ticks)
                # let sockets be read: this is also where a full transport reports backpressure
                await asyncio.sleep(0)
            if self._market.ended:
                self._end()
            elif not ticks:
                await self._sleep(self._market.wait(now) or 0)

    def _should_run(self, now: int) -> bool:
        """Return whether the market's clock should run now."""
        pace, receiving = self._pace, self._hub.receiving()
        if self._ended or self._source.idle or not pace.is_open(time.time_ns()):
            return False
        settled = now - self._hub.settled_since >= pace.settle
        if pace.at_max:
            return bool(receiving) and settled and not any(connection.paused for connection in receiving)
        return self._started or not pace.wait_for_subscriber or (bool(receiving) and settled)

    def _start(self, now: int) -> None:
        if not self._started:
            self._started = True
            self._hub.record({"event": "start"})
            for fault in self._faults_from_start:
                self._schedule.add(fault, now)
            self._inject_due()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._hub.send(self._tick_faults.flush())
            self._hub.record({"event": "end", "ticks": self._schedule.ticks})
            log.info("simulate: market ended after %d ticks; connections stay open", self._schedule.ticks)

    async def _sleep(self, ns: int) -> None:
        """Sleep until woken, a fault is due, or `ns` have passed."""
        until_fault = self._schedule.ns_until_due(time.monotonic_ns())
        timer = asyncio.get_running_loop().call_later(
            min(ns, _MAX_SLEEP, until_fault if until_fault is not None else ns) / SECOND, self._wake.set
        )
        await self._wake.wait()
        timer.cancel()

    async def _run_timers(self) -> None:
        """Send pings, enforce timeouts, and flush the ledger every half second."""
        flushed = time.monotonic_ns()
        while True:
            await asyncio.sleep(0.1)
            now = time.monotonic_ns()
            for connection in self._hub.connections:
                connection.on_timer(now)
            if self._ledger is not None and now - flushed >= SECOND // 2:
                self._ledger.flush()
                flushed = now

    async def _wait_for_closes(self) -> None:
        """Give the clients a moment to answer the close frames, then cut those that did not."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_SECONDS):
                while self._hub.any_open:
                    self._wake.clear()
                    await self._wake.wait()
        self._hub.cut_all()
        # one loop iteration, in which those connections report that they are lost
        await asyncio.sleep(0)

    def _inject_due(self) -> None:
        for fault in self._schedule.take_due(time.monotonic_ns()):
            self._hub.record({"event": "fault", "fault": str(fault), "tick": self._schedule.ticks})
            inject(fault, self._hub, self._tick_faults, self._rng)
