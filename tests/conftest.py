"""Fixtures that many folders share: a real Redis, running commands, the captures beside the repository."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support.cluster import RedisCluster
from support.paths import DATA
from support.processes import Process
from support.redis_server import RedisServer
from support.sentinel import RedisWithSentinels
from support.small_disk import mounted_at

# Machines are shared: the duration of an example means nothing. CI tries the same examples of a version each
# time, so that a change fails by what it changed; every run elsewhere, and `make fuzz`, tries new ones.
settings.register_profile("tickbus", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("tickbus")


_SERVER_FOLDERS = {"benchmarks", "demo", "e2e", "faults"}
_SLOW_FOLDERS = (*sorted(_SERVER_FOLDERS), "clients", "relay")
_SERVERS = {"redis_server", "shared_cluster", "shared_sentinels", "start"}
"""Fixtures that start servers or commands: what tests with them take is the time of those."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-servers", action="store_true", help="leave out all tests that start servers or commands"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # files are handed out in this order: the long ones first, so that no worker is alone with one at the end
    items.sort(key=lambda item: _folder(item) not in _SLOW_FOLDERS)
    if not config.getoption("--no-servers"):
        return
    left_out = [item for item in items if _starts_servers(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def _starts_servers(item: pytest.Item) -> bool:
    return _folder(item) in _SERVER_FOLDERS or not _SERVERS.isdisjoint(getattr(item, "fixturenames", ()))


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).parts[0]


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
    """Three masters with a replica each, empty and complete, even after a test that killed some."""
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
    """A master, its replica and three sentinels, empty."""
    shared_sentinels.heal()
    shared_sentinels.master().client.flushall()
    return shared_sentinels


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """A function that starts a command, start("gateway", "--feed", ...); the test's end kills it."""
    processes: list[Process] = []

    def begin(*args: str, **environ: str) -> Process:
        process = Process(tmp_path / f"{args[0]}-{len(processes)}.log", *args, **environ)
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_at(tmp_path) as disk:
        yield disk


@pytest.fixture
def data() -> Path:
    """The folder of real captures; the test is skipped where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no captures at {DATA}")
    return DATA
