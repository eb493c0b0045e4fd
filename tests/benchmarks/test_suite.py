"""The whole suite at a small size: it checks what was stored, prints its ratios and leaves nothing behind.

No speed is asserted.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT
from support.redis_server import require_program
from support.waiting import until

SMALL = [
    "--no-cryptofeed", "--frames", "3000", "--symbols", "7", "--rounds", "1", "--seconds", "0.5",
    "--rates", "200", "--counts", "2,5",
]  # fmt: skip


def suite(folder: Path, *args: str) -> "subprocess.Popen[str]":
    require_program("redis-server")
    require_program("redis-benchmark")
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *args],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def processes_of(folder: Path) -> list[str]:
    """Return the command lines that name a folder: server, gateway and upstream of a run in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if str(folder).encode() in line:
            found.append(line.replace(b"\0", b" ").decode())
    return found


@pytest.mark.timeout(180)
def test_suite_prints_ratios_and_writes_samples(tmp_path: Path) -> None:
    work, report = tmp_path / "work", tmp_path / "report.json"
    work.mkdir()
    with suite(work, "gateway", "reader", "latency", *SMALL, "--json", str(report)) as running:
        stdout, stderr = running.communicate(timeout=150)
    assert running.returncode == 0, stderr
    expected = {
        "gateway": ["gateway / one-connection XADD"],
        "reader": ["reader / raw hiredis loop"],
        "latency": [f"{share} / bare, 200/s, {count} symbols" for share in ("p50", "p99") for count in (2, 5)]
        + ["p50 5 symbols / p50 2, 200/s"],
    }
    parts = {part["part"]: part["ratios"] for part in json.loads(report.read_text())["parts"]}
    assert {name: [ratio["name"] for ratio in ratios] for name, ratios in parts.items()} == expected
    assert all(
        ratio["median"] > 0 and len(ratio["samples"]) == 1 for ratios in parts.values() for ratio in ratios
    )
    assert all(name in stdout for names in expected.values() for name in names)
    assert list(work.iterdir()) == []
    assert processes_of(work) == []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_stopped_suite_leaves_nothing_behind(tmp_path: Path) -> None:
    with suite(tmp_path, "latency", *SMALL, "--rates", "10", "--seconds", "50") as running:
        until(
            lambda: any("benchmarks.bare consume" in line for line in processes_of(tmp_path)),
            what="the suite is running",
        )
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=20)
    assert running.returncode == 143
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["speed"], "unknown part speed: expected any of gateway, reader, bars, relay, fanout, latency"),
        (["--symbols", "200"], "--symbols: 200 is out of range: expected 1 to 199"),
    ],
)
def test_invalid_arguments_are_refused(tmp_path: Path, args: list[str], message: str) -> None:
    with suite(tmp_path, *args) as running:
        _, stderr = running.communicate(timeout=20)
    assert running.returncode == 2
    assert message in stderr


def test_python_without_cryptofeed_is_an_error(tmp_path: Path) -> None:
    with suite(
        tmp_path, "gateway", "--rounds", "1", "--frames", "100", "--cryptofeed-python", sys.executable
    ) as running:
        _, stderr = running.communicate(timeout=30)
    assert running.returncode == 1
    assert "has no cryptofeed" in stderr
    assert list(tmp_path.iterdir()) == []
