"""The Python in README and docs type-checks against the wheel, and README's first program runs."""

import asyncio
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.paths import ROOT
from support.redis_server import RedisServer
from support.waiting import until_async
from support.writing import Writer, trade

from tickbus.protocol.messages import Gap, GapKind, StreamKind

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAM = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
OURS = re.compile(r"^(?:import|from) (?:tickbus|services)\b", re.MULTILINE)


def programs(page: Path) -> list[str]:
    """What a page shows as whole programs: they import something of ours."""
    return [text for text in PROGRAM.findall(page.read_text(encoding="utf-8")) if OURS.search(text)]


SNIPPETS = {
    f"{page.stem.replace('-', '_').lower()}_{number}": text
    for page in PAGES
    for number, text in enumerate(programs(page))
}


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the snippets as files, and in `site` the unpacked wheel of the library."""
    folder = tmp_path_factory.mktemp("snippets")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT / "shared", check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    assert (folder / "site" / "tickbus" / "py.typed").is_file()
    for name, text in SNIPPETS.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def check(folder: Path, *command: str) -> None:
    files = [f"{name}.py" for name, text in SNIPPETS.items() if "services" not in text]
    env = {"PATH": os.environ["PATH"], "MYPYPATH": str(folder / "site"), "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(
        [*command, *files], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_snippets_to_check() -> None:
    assert "readme_0" in SNIPPETS
    assert len(SNIPPETS) >= 4


@pytest.mark.timeout(300)
def test_mypy_is_clean_over_the_snippets(checked: Path) -> None:
    check(checked, sys.executable, "-m", "mypy", "--strict")


@pytest.mark.timeout(300)
def test_pyright_is_clean_over_the_snippets(checked: Path) -> None:
    (checked / "pyrightconfig.json").write_text('{"extraPaths": ["site"], "exclude": ["site"]}')
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable],
        cwd=checked, env=dict(os.environ), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


async def test_readmes_first_program_goes_on_over_gaps(redis_server: RedisServer, tmp_path: Path) -> None:
    program = tmp_path / "first.py"
    program.write_text(programs(ROOT / "README.md")[0].replace("redis://127.0.0.1:6379/0", redis_server.url))
    output = tmp_path / "output"
    with output.open("w") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-u", program, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        # an empty bus: once the program has asked for its first writer, it misses nothing
        await until_async(
            lambda: any(client["cmd"] == "hget" for client in redis_server.client.client_list())
        )
        writer = await Writer(redis_server.url).open()
        gap = Gap(StreamKind.TRADE, "gateway", GapKind.DISCONNECT, 1, 2, symbol="BTC-USDT")
        stream = writer.stream("BTC-USDT")
        entries = [
            writer.entry(stream, message) for message in (trade(1, "BTC-USDT"), gap, trade(2, "BTC-USDT"))
        ]
        await writer.publisher.commit(writer.transaction(entries))
        await until_async(lambda: output.read_text().count("\n") >= 3)
    finally:
        process.terminate()
        await process.wait()
    lines = output.read_text().splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["BTC-USDT", "1", "1"], ["BTC-USDT", "missing:", "None", "DISCONNECT"], ["BTC-USDT", "2", "1"],
    ]  # fmt: skip
    writer.close()
