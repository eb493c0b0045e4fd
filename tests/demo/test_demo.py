"""`tickbus demo` as a user runs it: the summary it prints matches the files and the bus."""

import json
import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import Process, tickbus
from support.recording import Recording
from support.redis_server import RedisServer
from support.waiting import until

from tickbus.protocol.codec import decode

Start = Callable[..., Process]
KINDS = ("trade", "quote", "bar", "gap")


def numbers(output: str, line: str) -> dict[str, int]:
    """Return the numbers of a line like `on the bus      12 trades, 3 quotes, ...` by kind."""
    row = matched(rf"^{line} +.*[0-9] trades.*", output)[0]
    return {kind: int(matched(rf"([\d,]+) {kind}s", row)[1].replace(",", "")) for kind in KINDS}


def matched(pattern: str, text: str) -> "re.Match[str]":
    match = re.search(pattern, text, re.MULTILINE)
    assert match is not None, text
    return match


def on_the_bus(folder: Path) -> dict[str, int]:
    """Count the entries in the server's data after the demo has ended, by kind."""
    server = RedisServer(folder / "redis")
    server.start()
    counts: dict[str, int] = dict.fromkeys(KINDS, 0)
    for key in server.client.scan_iter("tickbus:{*}:*:*"):
        if (kind := key.decode().split(":")[2]) in KINDS:
            for _, fields in server.client.xrange(key):
                ((field, payload),) = fields.items()
                decode(field, payload)
                counts["gap" if field == b"g" else kind] += 1
    server.close()
    return counts


def in_files(folder: Path) -> dict[str, int]:
    recording = Recording(folder / "data")
    return {kind: (recording.query("select count(*) from FILES", kind) or [(0,)])[0][0] for kind in KINDS}


def children(demo: Process) -> dict[int, str]:
    """Return the command of each child process by its id."""
    ids = Path(f"/proc/{demo.process.pid}/task/{demo.process.pid}/children").read_text().split()
    return {int(id): Path(f"/proc/{id}/cmdline").read_bytes().replace(b"\0", b" ").decode() for id in ids}


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_summary_is_true_restart_continues_and_a_dead_service_is_reported(
    start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "demo"
    # the user's own configuration does not reach the demo's services
    environ = {"TICKBUS_METRICS_PORT": "1", "TICKBUS_SYMBOLS": "BTC-USDT,GOLD"}
    demo = start("demo", "--seconds", "15", "--data-dir", str(folder), **environ)
    url = demo.wait_for(r"Redis +(redis://\S+)")[1]
    tail = tickbus("tail", "GOLD", "--redis", url, "--from", "start", "--count", "1", "--json")
    assert '"stream":"trade:demo:GOLD"' in tail.stdout
    second = tickbus("demo", "--data-dir", str(folder))
    assert (second.returncode, second.stderr) == (
        2,
        f"tickbus: another demo is running in {folder}; stop it, or choose another --data-dir\n",
    )
    assert demo.wait(60) == 0
    bus = numbers(demo.output, "on the bus")
    assert numbers(demo.output, "ran") == bus
    assert bus == on_the_bus(folder)
    assert min(bus["trade"], bus["quote"], bus["bar"]) > 0
    assert bus["gap"] == 0
    files = numbers(demo.output, "recorded")
    assert files == in_files(folder)
    left = int(matched(r"not recorded +([\d,]+)", demo.output)[1].replace(",", ""))
    assert sum(bus.values()) - sum(files.values()) == left

    again = start("demo", "--data-dir", str(folder), "--symbols", "BTC-USDT,GOLD")
    again.wait_for(r"[1-9][\d,]* ticks/s")
    (bars,) = (id for id, command in children(again).items() if " bars " in command)
    os.kill(bars, signal.SIGKILL)
    assert again.wait(30) == 1
    assert "tickbus: bars exited with -9; the end of its log" in again.output
    now = numbers(again.output, "on the bus")
    ran = numbers(again.output, "ran")
    assert now == {kind: bus[kind] + ran[kind] for kind in KINDS}
    assert now["trade"] > bus["trade"]
    # the time between the two runs is a gap in every stream
    assert ran["gap"] >= 2
    assert numbers(again.output, "recorded") == in_files(folder)


def test_page_is_the_first_line_and_services_do_not_outlive_the_demo(start: Start, tmp_path: Path) -> None:
    demo = start("demo", "--data-dir", str(tmp_path / "demo"))
    demo.wait_for("metrics ")
    address = matched(r"\A(http://127\.0\.0\.1:\d+/)\n", demo.output)[1]
    with urllib.request.urlopen(f"{address}api/status", timeout=5) as answer:
        assert answer.status == 200
    processes = children(demo)
    assert len(processes) == 6
    demo.kill()
    until(lambda: not any(map(alive, processes)), what="all have exited with the demo")


def test_ctrl_c_stops_cleanly(start: Start, tmp_path: Path) -> None:
    demo = start("demo", "--data-dir", str(tmp_path / "demo"))
    demo.wait_for("metrics ")
    processes = children(demo)
    demo.signal(signal.SIGINT)
    assert demo.wait(30) == 0
    assert not any(map(alive, processes))
    assert "not recorded" in demo.output
    for log in ("simulate", "gateway", "bars", "recorder"):
        assert "SIGTERM" in (tmp_path / "demo" / "logs" / f"{log}.log").read_text()


def test_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = tickbus("demo", "--data-dir", str(tmp_path / "file" / "below"))
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "choose a writable folder" in refused.stderr


def recorded_frames() -> str:
    """Return a capture: 40 trades of two symbols within 2 s, each behind a quote."""
    lines = []
    for number in range(40):
        symbol, price = ("BTCUSDT", "ETHUSDT")[number % 2], f"{100 + number}.50"
        at = 10**18 + number * 5 * 10**7
        quote = {"u": number + 1, "s": symbol, "b": price, "B": "2", "a": "200.00", "A": "3"}
        trade = {"e": "trade", "E": at // 10**6, "s": symbol, "t": number + 1, "p": price, "q": "0.5"}
        trade |= {"T": at // 10**6, "m": True}
        for channel, data in (("bookTicker", quote), ("trade", trade)):
            frame = {"stream": f"{symbol.lower()}@{channel}", "data": data}
            lines.append(f"{at} {json.dumps(frame, separators=(',', ':'))}")
    return "\n".join(lines)


def test_recorded_day_is_played_whole_as_if_it_were_now(start: Start, tmp_path: Path) -> None:
    (tmp_path / "day.txt").write_text(recorded_frames())
    began = time.time_ns()
    demo = start(
        "demo", "--data-dir", str(tmp_path / "demo"), "--capture", str(tmp_path / "day.txt"), "--speed", "2",
    )  # fmt: skip
    demo.wait_for("the recording has ended after 80 ticks")
    url = demo.wait_for(r"Redis +(redis://\S+)")[1]
    tail = tickbus("tail", "ETHUSDT", "--redis", url, "--from", "start", "--count", "20", "--json")
    rows = [json.loads(line) for line in tail.stdout.splitlines()]
    assert [row["price"] for row in rows] == [f"{100 + number}.50" for number in range(1, 40, 2)]
    # as if it were now; the vendor's times are in ms
    times = [row["ts_event"] for row in rows]
    assert times == sorted(times)
    assert times[0] >= began // 10**6 * 10**6
    demo.signal(signal.SIGINT)
    assert demo.wait(30) == 0
    assert numbers(demo.output, "on the bus") | {"bar": 0} == {"trade": 40, "quote": 40, "bar": 0, "gap": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--capture", "{folder}/none.gz"], "--capture: no such file: {folder}/none.gz"),
        (["--capture", "{folder}/bad.txt"], "{folder}/bad.txt, line 2: b'nonsense' is no time"),
        (["--capture", "{folder}/bad.gz"], "cannot read {folder}/bad.gz"),
        (["--capture", "{folder}/_trade.csv"], "no symbol in its name"),
        (["--capture", "{folder}"], "no files in {folder}"),
        (["--capture", "{folder}/good.txt", "--symbols", "GOLD"], "--symbols GOLD: not in the recording"),
        (["--capture", "{folder}/good.txt", "--speed", "fast"], "invalid --speed fast: expected a number"),
        (["--speed", "2"], "--speed 2 without --capture"),
    ],
)
def test_recording_that_cannot_be_played_is_one_line_and_exit_code_2(
    tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "good.txt").write_text(recorded_frames())
    (tmp_path / "bad.txt").write_text(recorded_frames().splitlines()[0] + "\nnonsense\n")
    (tmp_path / "bad.gz").write_text("nonsense")
    (tmp_path / "_trade.csv").write_text("")
    refused = tickbus(
        "demo", "--data-dir", str(tmp_path / "demo"), *(text.format(folder=tmp_path) for text in options)
    )
    assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)
    assert message.format(folder=tmp_path) in refused.stderr
    assert not (tmp_path / "demo").exists()
