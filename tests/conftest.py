"""Fixtures that many folders share: a real Redis, running parts, the captures beside the repository."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support.cluster import RedisCluster
from support.paths import DATA
from support.processes import Part
from support.redis_server import RedisServer
from support.sentinel import RedisWithSentinels

# machines are shared: how long an example takes says nothing
settings.register_profile("tickbus", deadline=None)
settings.load_profile("tickbus")


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def redis_cluster(shared_cluster: RedisCluster) -> RedisCluster:
    """Three masters with a replica each, empty, all there: also after a test that killed some."""
    shared_cluster.heal()
    shared_cluster.flush()
    return shared_cluster


@pytest.fixture(scope="session")
def shared_sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisWithSentinels]:
    servers = RedisWithSentinels(tmp_path_factory.mktemp("sentinels"))
    try:
        servers.start()
        yield servers
    finally:
        servers.close()


@pytest.fixture
def redis_sentinels(shared_sentinels: RedisWithSentinels) -> RedisWithSentinels:
    """A master, its replica, three sentinels. Empty."""
    shared_sentinels.heal()
    shared_sentinels.master().client.flushall()
    return shared_sentinels


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
