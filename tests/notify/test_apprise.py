"""Receivers that apprise knows by their URL; here one that takes JSON over HTTP, on a real socket."""

import subprocess
import sys
from pathlib import Path

from notify.alerts import Alerts, Start, dead_letters, position, receiver_file, signal, start_notify
from support.processes import tickbus
from support.redis_server import RedisServer
from support.waiting import until
from support.webhook import Webhook

from tickbus.protocol.names import StreamId


async def test_alerts_reach_a_receiver_of_apprise_also_after_failures(
    redis_server: RedisServer, start: Start, tmp_path: Path
) -> None:
    statuses = iter([500, 503])
    hook = Webhook(lambda _: next(statuses, 200))
    writer = await Alerts(redis_server.url).open()
    file = receiver_file(tmp_path, f"json://localhost:{hook.port}/hush-hush-hush")
    notify = start_notify(start, redis_server, file, "--log-level", "debug")
    ids = await writer.add(signal(1), signal(2), signal(3))
    until(lambda: position(redis_server) == StreamId.parse(ids[-1]))
    assert [request.body["title"] for request in hook.accepted] == [
        "spread start BTC-USDT", "spread end BTC-USDT", "spread start BTC-USDT",
    ]  # fmt: skip
    text = hook.accepted[2].body["message"]
    assert text.startswith("alert 3\n3.5 bp, threshold 2 (has_gap)\n") and text.endswith(f":{ids[2]}")
    assert len(hook.requests) == 5
    until(lambda: notify.metric("tickbus_notify_retries_total", reason="apprise") == 2)
    assert dead_letters(redis_server) == []
    assert "hush-hush-hush" not in notify.output
    assert notify.stop() == 0
    writer.close()
    hook.stop()


def test_url_that_apprise_does_not_know_is_one_line(redis_server: RedisServer, tmp_path: Path) -> None:
    file = receiver_file(tmp_path, "nosuchthing://hush-hush-hush")
    done = tickbus("notify", "--redis", redis_server.url, "--receiver", str(file))
    assert done.returncode == 2
    assert "tickbus: receiver ops: apprise does not understand its URL" in done.stderr
    assert "hush" not in done.stdout + done.stderr


def test_missing_package_is_named(redis_server: RedisServer, tmp_path: Path) -> None:
    for package, url in (("apprise", "json://h/hush-hush-hush"), ("aiohttp", "http://h/hush-hush-hush")):
        program = (
            f"import sys; sys.modules[{package!r}] = None\n"
            "from services.cli import main; raise SystemExit(main(sys.argv[1:]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, "notify", "--redis", redis_server.url, "--receiver",
             str(receiver_file(tmp_path, url))],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        extra = "notify" if package == "aiohttp" else "apprise"
        assert f"pip install 'tickbus-services[{extra}]'" in done.stderr
        assert "hush" not in done.stderr
