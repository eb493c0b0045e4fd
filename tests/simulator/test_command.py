"""The command as scripts use it: one line when listening, commands on standard input, a clean end."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.paths import ROOT
from websockets.asyncio.client import connect

from services.simulator.main import Options
from tickbus.service.load_options import load


@asynccontextmanager
async def simulate(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "simulate", "--metrics-port", "-1", *arguments),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("TICKBUS_")},
    )
    try:
        async with asyncio.timeout(30):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_command_listens_answers_and_stops_on_sigterm(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    async with simulate("--speed", "max", "--limit", "5", "--ledger", str(ledger)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode().strip()
        assert line.startswith("listening on ws://127.0.0.1:")
        async with connect(line.removeprefix("listening on ") + "/ws/btcusdt@trade") as socket:
            for command, answer in (
                ("status", "ok ticks="),
                ("drop=1", "ok drop=1"),
                ("nonsense", "error: fault 'nonsense'"),
            ):
                process.stdin.write(f"{command}\n".encode())
                assert (await process.stdout.readline()).decode().startswith(answer)
            assert json.loads(await socket.recv())["s"] == "BTCUSDT"
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    lines = [json.loads(text) for text in ledger.read_text().splitlines()]
    assert next(line["event"] for line in lines if "event" in line) == "connect"
    assert lines[-1]["event"] == "close"
    assert lines[-1]["sent_code"] == 1001


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "tape:x"], "expected synthetic, capture:"),
        (["--source", "capture:/none"], "no such file: /none"),
        (["--speed", "fast"], "invalid --speed fast: expected a number"),
        (["--faults", "explode"], "unknown word 'explode'"),
        (["--symbols", 'A"B'], "invalid symbol 'A\"B'"),
        (["--session", "9-5"], "or '13:30-20:00'"),
        (["--port", "70000"], "--port"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        (["--preload", "5"], "--symbols"),
        (["--list-symbols"], "requires a recording"),
        (["--list-symbols", "--source", f"capture:{os.devnull}x"], "no such file"),
        (["--frobnicate"], "--help"),
    ],
)
async def test_invalid_option_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    async with simulate(*arguments) as process:
        _, errors = await process.communicate()
        assert process.returncode == 2
        assert message in errors.decode()
        assert len(errors.decode().strip().splitlines()) == 1


async def test_invalid_line_in_a_recording_is_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text('1 {"stream":"a@depth","data":{}}\nnonsense\n')
    async with simulate("--source", f"capture:{path}", "--start", "now") as process:
        _, errors = await process.communicate()
        assert process.returncode == 2
        assert "c.txt, line 2" in errors.decode()


async def test_symbols_of_a_recording_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    frames = [
        f'{{"stream":"{symbol.lower()}@bookTicker","data":{{"u":1,"s":"{symbol}","b":"1","B":"1","a":"2","A":"1"}}}}'
        for symbol in ("ETHUSDT", "BTCUSDT", "ETHUSDT")
    ]
    path.write_text("\n".join(f"{number} {frame}" for number, frame in enumerate(frames)))
    async with simulate("--source", f"capture:{path}", "--list-symbols") as process:
        assert await process.communicate() == (b"ETHUSDT\nBTCUSDT\n", b"")
        assert process.returncode == 0


def test_every_option_has_a_default() -> None:
    assert load(Options, "simulate", [], environ={}) == Options()
