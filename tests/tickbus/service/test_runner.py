"""The runner of all services, as a supervisor and an operator meet it: a real process, signals, its health."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import Part
from support.waiting import until

SERVICE = """
import asyncio, sys, time
from tickbus.service import runner as service
from tickbus.service.options import ServiceOptions

async def main(self):
    self.ready = True
    if "stuck" in sys.argv:
        await asyncio.sleep(0.2)
        while True:
            time.sleep(0.1)
    await self.stopping.wait()
    if "slow" in sys.argv:
        await asyncio.Event().wait()

service._STUCK_SECONDS = 1.0
raise SystemExit(service.run(main, ServiceOptions(), "example"))
"""


class Example(Part):
    command = (sys.executable, "-c", SERVICE)


@pytest.fixture
def example(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Part]:
    part = Example(tmp_path / "example.log", request.param)
    yield part
    part.close()


@pytest.mark.parametrize("example", ["well"], indirect=True)
def test_told_once_it_ends_in_order(example: Part) -> None:
    assert example.ready().get("/healthz") == (200, "alive\n")
    assert example.get("/nothing")[0] == 404
    assert example.stop() == 0


@pytest.mark.parametrize("example", ["slow"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_twice_it_ends_at_once(example: Part, number: signal.Signals) -> None:
    example.ready().signal(number)
    example.wait_for("stopping, as told by .*; once more to end at once")
    assert example.process.poll() is None
    example.signal(number)
    assert example.wait() == 128 + number


@pytest.mark.parametrize("example", ["stuck"], indirect=True)
def test_a_loop_that_stands_still_is_not_alive(example: Part) -> None:
    until(lambda: example.get("/healthz") == (503, "the event loop stands still\n"), what="it is found out")
    assert example.get("/metrics")[0] == 200  # they can be read all the same
