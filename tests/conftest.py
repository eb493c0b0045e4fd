"""Fixtures that many folders share: a real Redis, running parts, the captures beside the repository."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.parts import Part
from support.redis_server import RedisServer

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Part]]:
    """start("gateway", "--feed", ...) -> a running Part, ended with the test."""
    parts: list[Part] = []

    def begin(*args: str, **environ: str) -> Part:
        part = Part(tmp_path / f"{args[0]}-{len(parts)}.log", *args, **environ)
        parts.append(part)
        return part

    yield begin
    for part in parts:
        part.close()


@pytest.fixture
def data() -> Path:
    """The folder of real captures; the test is skipped where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no captures at {DATA}")
    return DATA
