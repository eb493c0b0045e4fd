"""`run_consumer` makes a service of a program: metrics, health, a clean end."""

import sys
from pathlib import Path

from support.processes import Process
from support.redis_server import RedisServer
from support.waiting import until, until_async
from support.writing import KEYS, Writer

PROGRAM = """
import sys
from tickbus import Consumer
from tickbus.service import ServiceOptions, run_consumer

async def work(batches: Consumer) -> None:
    async for batch in batches:
        for stream, id, message in batch:
            if getattr(message, "price_text", "") == "13":
                raise RuntimeError("thirteen")
        await batch.commit()

raise SystemExit(run_consumer("my-app", work, ServiceOptions(redis=sys.argv[1]), kind="trade"))
"""


class App(Process):
    command = (sys.executable, "-c", PROGRAM)


async def test_app_is_ready_reports_its_lag_and_ends_cleanly(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    app = App(tmp_path / "app.log", redis_server.url)
    try:
        writer = await Writer(redis_server.url).open()
        await writer.write(1, 2, 3)
        await until_async(lambda: app.get("/readyz")[0] == 200, what="the app is ready")
        assert app.get("/healthz") == (200, "alive\n")

        def position() -> bytes | None:
            return redis_server.client.hget(KEYS.position(KEYS.shard("A"), "my-app"), "trade:test:A")

        await until_async(lambda: (position() or b"").endswith(b"-3"), what="everything is committed")
        until(lambda: app.metric("tickbus_consumer_read_total") == 3)
        until(lambda: app.metric("tickbus_consumer_lag_ticks") == 0, what="the lag is measured again")
        (heartbeat,) = redis_server.client.hgetall(KEYS.members("my-app")).values()
        assert int(heartbeat) > 0
        assert app.stop() == 0
        (heartbeat,) = redis_server.client.hgetall(KEYS.members("my-app")).values()
        assert int(heartbeat) < 0, "it left: the others need not wait"
        writer.close()
    finally:
        app.close()


async def test_error_of_the_app_ends_it_and_commits_nothing_more(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    app = App(tmp_path / "app.log", redis_server.url)
    try:
        writer = await Writer(redis_server.url).open()
        await writer.write(13)
        assert app.wait() == 1
        assert "RuntimeError: thirteen" in app.output
        assert redis_server.client.hget(KEYS.position(KEYS.shard("A"), "my-app"), "trade:test:A") is None
        writer.close()
    finally:
        app.close()
