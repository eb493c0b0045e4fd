"""TLS and passwords, against servers that require them: what connects, and one-line errors with the fix."""

import asyncio
import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.redis_server import RedisServer, free_port, require_program
from support.sentinel import MASTER, SentinelServer

from tickbus.errors import RedisMisconfigured, RedisUnavailable
from tickbus.redis.topology import locate


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return a self-signed certificate for 127.0.0.1, and its key."""
    certificate, key = folder / "server.crt", folder / "server.key"
    subprocess.run(
        [require_program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key),
         "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Yield host:port of a server that accepts only TLS, and the CA file."""
    certificate, key = make_certificate(tmp_path)
    port = free_port()
    server = RedisServer(
        tmp_path / "tls",
        "--tls-port",
        str(port),
        "--tls-cert-file",
        str(certificate),
        "--tls-key-file",
        str(key),
        "--tls-auth-clients",
        "no",
    )
    server.start()
    yield f"127.0.0.1:{port}", certificate
    server.close()


async def test_tls_connects_with_the_ca_and_names_the_fix_without(secured: tuple[str, Path]) -> None:
    place, ca = secured
    for connect in (
        locate(f"rediss://{place}/0?ssl_ca_certs={ca}").connect,
        locate(f"rediss://{place}/0?ssl_cert_reqs=none").open_checked,
    ):
        link = await connect()
        assert await link.ask("PING") == b"PONG"
        link.close()
    # only newer versions of redis-py say CERTIFICATE_VERIFY_FAILED
    with pytest.raises(RedisUnavailable, match=r"; set the CA file .*ssl_ca_certs=FILE"):
        await locate(f"rediss://{place}/0").connect()
    with pytest.raises(RedisUnavailable, match=r"; if it uses TLS, use rediss instead of redis"):
        await locate(f"redis://{place}/0").connect()


async def test_many_connections_share_one_tls_context(
    secured: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 contexts, each with all the system's CAs, would block a loop for longer than a connect may take."""
    created: list[ssl.SSLContext] = []
    create = ssl.create_default_context

    def counted() -> ssl.SSLContext:
        created.append(create())
        return created[-1]

    monkeypatch.setattr(ssl, "create_default_context", counted)
    place, ca = secured
    redis = locate(f"rediss://{place}/0?ssl_ca_certs={ca}")
    for link in await asyncio.gather(*(redis.link("any") for _ in range(20))):
        link.close()
    assert len(created) == 1
    os.utime(ca)  # a new certificate
    (await redis.link("any")).close()
    assert len(created) == 2


@pytest.fixture
def watched(redis_server: RedisServer, tmp_path: Path) -> Iterator[str]:
    """Yield host:port of a sentinel with the password `watchword`."""
    sentinel = SentinelServer(
        tmp_path / "sentinel",
        f"requirepass watchword\nsentinel monitor {MASTER} 127.0.0.1 {redis_server.port} 1\n",
    )
    sentinel.start()
    yield f"127.0.0.1:{sentinel.port}"
    sentinel.close()


async def test_sentinel_password_is_separate(watched: str) -> None:
    url = f"redis+sentinel://{watched}/{MASTER}/0"
    for login in ("sentinel_password=watchword", "sentinel_username=default&sentinel_password=watchword"):
        (await locate(f"{url}?{login}").connect()).close()
    for wrong in (url, f"{url}?sentinel_password=secret"):
        with pytest.raises(
            RedisMisconfigured,
            match=r"^sentinel 127.0.0.1:\d+: .*; sentinels have their own password, or none: set \?sent",
        ) as error:
            await locate(wrong).connect()
        assert "secret" not in str(error.value)


async def test_url_of_one_server_rejects_a_sentinel(watched: str) -> None:
    redis = locate(f"redis://:watchword@{watched}/0")
    for connect in (redis.connect, redis.open_checked):
        with pytest.raises(
            RedisMisconfigured, match=r"is a sentinel; use redis\+sentinel://host:port/<master name>/0"
        ):
            await connect()
