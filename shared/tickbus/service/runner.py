"""One runner for every service: signals, exit code, logs, /metrics, /healthz, /readyz. Needs the `service` extra.

    async def main(service: Service) -> None:
        service.ready = True
        await service.stopping.wait()

    raise SystemExit(run(main, options, part="bars"))

SIGTERM and Ctrl-C set `service.stopping`; `main` then closes its intake, writes what it holds and returns. A second signal
ends the process at once. The exit code is 0, or that of the TickbusError that ended `main` (see tickbus.errors).
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
"""A loop that has not turned for this long is not alive."""


class Service:
    """What a running service shares with its runner."""

    def __init__(self, part: str) -> None:
        self.part = part
        self.stopping = asyncio.Event()
        self.ready = False
        """Whether it does its job now; /readyz says so."""
        self.why_not_ready = "starting"
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the number of series and say nothing
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self.meters = Meters(registry)
        self.meters.gauge(BUILD_INFO).labels(VERSION, part).set(1)
        self._last_turn = time.monotonic()

    @property
    def alive(self) -> bool:
        return time.monotonic() - self._last_turn < _STUCK_SECONDS

    async def _turn(self) -> None:
        while True:
            self._last_turn = time.monotonic()
            await asyncio.sleep(0.5)

    async def until_stopping(self, work: Awaitable[None]) -> None:
        """Run `work` until it ends or the service is told to stop; then it is cancelled. Its error is raised."""
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


def run(main: Callable[[Service], Awaitable[None]], options: CommonOptions, part: str) -> int:
    """Run `main` to its end; -> the exit code. Errors meant for the operator are one line on standard error."""
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        asyncio.run(_serve(main, options, part))
    except BaseExceptionGroup as group:
        return _say(group)
    except TickbusError as error:
        return _say(error)
    except KeyboardInterrupt:
        return 130
    return 0


def _say(error: BaseException) -> int:
    """Print what ended the service; of a group, the error that says most: one of ours before a bug's echo."""
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


async def _serve(main: Callable[[Service], Awaitable[None]], options: CommonOptions, part: str) -> None:
    service = Service(part)
    _catch_signals(service)
    spare_the_collector()
    turning = asyncio.create_task(service._turn())
    server = (
        _open_http(service, options)
        if isinstance(options, ServiceOptions) and options.metrics_port >= 0
        else None
    )
    try:
        await main(service)
    finally:
        turning.cancel()
        if server is not None:
            # shutdown waits for the serving thread, up to half a second: the loop is done, so nothing else waits with it
            server.shutdown()
            server.server_close()
        # it is ending: a signal that comes now must not change the exit code
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


def spare_the_collector() -> None:
    """Ticks hold no cycles, yet each allocation counts towards a collection that walks everything: 15 % of a busy gateway."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _catch_signals(service: Service) -> None:
    loop = asyncio.get_running_loop()

    def caught(number: int) -> None:
        if service.stopping.is_set():
            # the operator does not want to wait: no cleaning up, what is stored is stored
            os._exit(128 + number)
        log.info(
            "%s: stopping, as told by %s; once more to end at once", service.part, signal.Signals(number).name
        )
        service.stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, caught, number)


class _Handler(BaseHTTPRequestHandler):
    service: Service

    def do_GET(self) -> None:
        service = self.service
        path = self.path.partition("?")[0]
        if path == "/metrics":
            service.meters.refresh()
            self._answer(200, CONTENT_TYPE_LATEST, generate_latest(service.meters.registry))
        elif path == "/healthz":
            self._answer(
                *(
                    (200, "text/plain", b"alive\n")
                    if service.alive
                    else (503, "text/plain", b"the event loop stands still\n")
                )
            )
        elif path == "/readyz":
            self._answer(
                *(
                    (200, "text/plain", b"ready\n")
                    if service.ready
                    else (503, "text/plain", service.why_not_ready.encode() + b"\n")
                )
            )
        else:
            self._answer(404, "text/plain", b"there are /metrics, /healthz and /readyz\n")

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not news."""


def _open_http(service: Service, options: ServiceOptions) -> ThreadingHTTPServer:
    # threads, so that /healthz answers (503) even when the loop stands still
    handler = type("Handler", (_Handler,), {"service": service})
    try:
        server = ThreadingHTTPServer((options.metrics_host, options.metrics_port), handler)
    except OSError as error:
        raise ConfigError(
            f"--metrics-host {options.metrics_host}, --metrics-port {options.metrics_port}: cannot listen there: {error.strerror}; choose another"
        ) from None
    server.daemon_threads = True
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True
    ).start()
    log.info(
        "%s: metrics on http://%s:%d/metrics", service.part, options.metrics_host, server.server_address[1]
    )
    return server
