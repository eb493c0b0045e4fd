"""The runner of every service: signals, exit code, logs, metrics, health. Needs the extra `tickbus[service]`.

    async def main(service: Service) -> None:
        service.ready = True
        await service.stopping.wait()

    raise SystemExit(run(main, options, name="bars"))

SIGTERM and Ctrl-C set `service.stopping`; `main` then closes its intake, writes what is buffered and
returns. A second signal ends the process immediately. The exit code is 0, or that of the TickbusError that
ended `main` (see tickbus.errors).
"""

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tickbus.errors import ConfigError, TickbusError
from tickbus.monitoring.meters import Meters
from tickbus.monitoring.metrics import BUILD_INFO
from tickbus.sanitize import clean_lines, hide_secrets
from tickbus.service import logs
from tickbus.service.http_server import HttpServer, Response
from tickbus.service.options import CommonOptions, ServiceOptions
from tickbus.version import VERSION

log = logging.getLogger("tickbus")

_STUCK_SECONDS = 10.0
"""An event loop that has been blocked for this long is not alive."""


class Service:
    """What a running service shares with its runner."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stopping = asyncio.Event()
        self._ready = False
        self._why_not_ready = "starting"
        disable_created_metrics()  # type: ignore[no-untyped-call]  # twice the series, no information
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self.meters = Meters(registry)
        self.meters.gauge(BUILD_INFO).labels(VERSION, name).set(1)
        self._last_beat = time.monotonic()

    @property
    def ready(self) -> bool:
        """Whether it does its job now, and goes on doing it; reported by /readyz."""
        return self._ready and not self.stopping.is_set()

    @ready.setter
    def ready(self, ready: bool) -> None:
        self._ready = ready

    @property
    def why_not_ready(self) -> str:
        """For people, while it is not ready."""
        return "stopping" if self.stopping.is_set() else self._why_not_ready

    @why_not_ready.setter
    def why_not_ready(self, why: str) -> None:
        self._why_not_ready = why

    @property
    def alive(self) -> bool:
        return time.monotonic() - self._last_beat < _STUCK_SECONDS

    async def _beat(self) -> None:
        while True:
            self._last_beat = time.monotonic()
            await asyncio.sleep(0.5)

    async def until_stopping(self, work: Awaitable[None]) -> None:
        """Run `work` until it ends; cancel it when the service is to stop. Its error is raised."""
        task = asyncio.ensure_future(work)
        stop = asyncio.create_task(self.stopping.wait())
        try:
            await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            stop.cancel()
            task.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)


def run(main: Callable[[Service], Awaitable[None]], options: CommonOptions, name: str) -> int:
    """Run `main` to its end. Return the exit code. Errors for the operator are one line on standard error."""
    logs.configure(options.log_level)
    try:
        asyncio.run(_serve(main, options, name))
    except BaseExceptionGroup as group:
        return _report_error(group)
    except TickbusError as error:
        return _report_error(error)
    except KeyboardInterrupt:
        return 130
    return 0


def _report_error(error: BaseException) -> int:
    """Print the error that ended the service. Return its exit code. A group that contains a bug is raised."""
    if isinstance(error, BaseExceptionGroup):
        ours, others = error.split(TickbusError)
        if others is not None:
            raise others
        while isinstance(ours, BaseExceptionGroup):
            ours = ours.exceptions[0]  # type: ignore[assignment]
        assert isinstance(ours, TickbusError)
        error = ours
    print(f"tickbus: {clean_lines(error)}", file=sys.stderr)  # noqa: T201
    return error.exit_code if isinstance(error, TickbusError) else 1


async def _serve(main: Callable[[Service], Awaitable[None]], options: CommonOptions, name: str) -> None:
    service = Service(name)
    _catch_signals(service)
    tune_gc()
    beating = asyncio.create_task(service._beat())
    server = (
        _open_http(service, options)
        if isinstance(options, ServiceOptions) and options.metrics_port >= 0
        else None
    )
    try:
        await main(service)
    finally:
        beating.cancel()
        if server is not None:
            server.close()
        # the process is ending: a signal that arrives now must not change the exit code
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


def tune_gc() -> None:
    """Tune the garbage collector down: ticks contain no cycles, yet every allocation counts towards a
    collection that walks everything, which takes 15 percent of a busy gateway."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _catch_signals(service: Service) -> None:
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if service.stopping.is_set():
            # the operator does not want to wait: no cleanup, what is stored is stored
            os._exit(128 + number)
        log.info(
            "%s: received %s, stopping; send it again to exit immediately",
            service.name, signal.Signals(number).name,
        )  # fmt: skip
        service.stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)


def _respond(service: Service, path: str) -> Response:
    if path == "/metrics":
        service.meters.refresh()
        return Response(200, generate_latest(service.meters.registry), CONTENT_TYPE_LATEST)
    if path == "/healthz":
        return Response(200, b"alive\n") if service.alive else Response(503, b"the event loop is stalled\n")
    if path == "/readyz":
        if service.ready:
            return Response(200, b"ready\n")
        return Response(503, hide_secrets(service.why_not_ready).encode(errors="replace") + b"\n")
    return Response(404, b"not found: expected /metrics, /healthz or /readyz\n")


def _open_http(service: Service, options: ServiceOptions) -> HttpServer:
    # a thread of its own, so that /healthz answers (503) even when the loop is stalled
    try:
        server = HttpServer(options.metrics_host, options.metrics_port, partial(_respond, service))
    except OSError as error:
        raise ConfigError(
            f"--metrics-host {options.metrics_host}, --metrics-port {options.metrics_port}: "
            f"cannot listen there: {error.strerror}; choose another"
        ) from None
    host = f"[{options.metrics_host}]" if ":" in options.metrics_host else options.metrics_host
    log.info("%s: metrics on http://%s:%d/metrics", service.name, host, server.port)
    return server
