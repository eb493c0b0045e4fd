"""The runner of all services, as supervisors and operators see it: a real process, signals, health."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import Process
from support.waiting import until

SERVICE = """
import asyncio, sys, time
from tickbus.service import runner
from tickbus.service.options import ServiceOptions

async def main(service):
    service.ready = True
    if "stuck" in sys.argv:
        await asyncio.sleep(0.2)
        while True:  # blocks the event loop, as a service does that is stuck
            time.sleep(0.1)
    await service.stopping.wait()
    if "slow" in sys.argv:
        await asyncio.Event().wait()

runner._STUCK_SECONDS = 1.0
raise SystemExit(runner.run(main, ServiceOptions(), "example"))
"""


class Example(Process):
    command = (sys.executable, "-c", SERVICE)


@pytest.fixture
def example(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Process]:
    process = Example(tmp_path / "example.log", request.param)
    yield process
    process.close()


@pytest.mark.parametrize("example", ["well"], indirect=True)
def test_first_signal_ends_the_service_in_order(example: Process) -> None:
    assert example.wait_ready().get("/healthz") == (200, "alive\n")
    assert example.get("/nothing")[0] == 404
    assert example.stop() == 0


@pytest.mark.parametrize("example", ["slow"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_the_process_at_once(example: Process, number: signal.Signals) -> None:
    example.wait_ready().signal(number)
    example.wait_for("received SIG.*, stopping; send it again to exit immediately")
    assert example.process.poll() is None
    example.signal(number)
    assert example.wait() == 128 + number


@pytest.mark.parametrize("example", ["stuck"], indirect=True)
def test_stalled_event_loop_is_not_alive(example: Process) -> None:
    until(
        lambda: example.get("/healthz") == (503, "the event loop is stalled\n"), what="the stall is noticed"
    )
    assert example.get("/metrics")[0] == 200  # still readable
