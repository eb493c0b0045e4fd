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
import threading
import time
from collections.abc import Awaitable, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )
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
    print(f"tickbus: {error}", file=sys.stderr)  # noqa: T201
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
            # shutdown waits for the serving thread, up to half a second: the loop is done, nothing else waits
            server.shutdown()
            server.server_close()
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


class _Handler(BaseHTTPRequestHandler):
    service: Service

    def do_GET(self) -> None:
        service = self.service
        path = self.path.partition("?")[0]
        if path == "/metrics":
            service.meters.refresh()
            self._respond(200, CONTENT_TYPE_LATEST, generate_latest(service.meters.registry))
        elif path == "/healthz":
            self._respond(
                *(
                    (200, "text/plain", b"alive\n")
                    if service.alive
                    else (503, "text/plain", b"the event loop is stalled\n")
                )
            )
        elif path == "/readyz":
            self._respond(
                *(
                    (200, "text/plain", b"ready\n")
                    if service.ready
                    else (503, "text/plain", service.why_not_ready.encode() + b"\n")
                )
            )
        else:
            self._respond(404, "text/plain", b"not found: expected /metrics, /healthz or /readyz\n")

    def _respond(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not logged."""


def _open_http(service: Service, options: ServiceOptions) -> ThreadingHTTPServer:
    # threads, so that /healthz answers (503) even when the loop is stalled
    handler = type("Handler", (_Handler,), {"service": service})
    try:
        server = ThreadingHTTPServer((options.metrics_host, options.metrics_port), handler)
    except OSError as error:
        raise ConfigError(
            f"--metrics-host {options.metrics_host}, --metrics-port {options.metrics_port}: "
            f"cannot listen there: {error.strerror}; choose another"
        ) from None
    server.daemon_threads = True
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True
    ).start()
    log.info(
        "%s: metrics on http://%s:%d/metrics", service.name, options.metrics_host, server.server_address[1]
    )
    return server
