"""The page as it is served: files, headers, paths, tokens. What it shows: test_page_in_browser.py."""

import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from relay.test_server import TOKEN, handshake, token_row, tuple_of
from support.paths import ROOT
from support.processes import Process
from support.redis_server import RedisServer
from support.relay import start_relay

from services.relay.page import FOLDER, Page, content_security_policy

Start = Callable[..., Process]
FILES = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.*")}
CLIENT = ROOT / "clients" / "js" / "tickbus.js"


def ask(url: str, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body. The path goes out as it stands."""
    fields = {"Host": url.removeprefix("ws://"), **headers}
    lines = [
        f"{method} {path} HTTP/1.1",
        *(f"{name.replace('_', '-')}: {each}" for name, each in fields.items()),
    ]
    with socket.create_connection(tuple_of(url)) as raw:
        raw.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while part := raw.recv(1 << 16):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *rows = head.decode().split("\r\n")
    found = {name.lower(): value for name, _, value in (row.partition(": ") for row in rows)}
    return int(status.split()[1]), found, body


def test_every_file_is_served_as_what_it_is(redis_server: RedisServer, start: Start) -> None:
    _, url = start_relay(start, redis_server.url)
    types = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
    for name in FILES:
        status, headers, body = ask(url, f"/page/{name}")
        assert (status, body) == (200, (FOLDER / name).read_bytes()), name
        assert headers["content-type"].startswith(types[Path(name).suffix])
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-cache"
    assert ask(url, "/page/tickbus.js")[2] == CLIENT.read_bytes()


def test_views_are_addresses_of_their_own(redis_server: RedisServer, start: Start) -> None:
    _, url = start_relay(start, redis_server.url)
    index = (FOLDER / "index.html").read_bytes()
    views = ("/", "/?bars=x", "/page", "/page/", "/page/market", "/page/alerts", "/page/health",
             "/page/symbol/binance/BTC-USDT")  # fmt: skip
    for path in views:
        assert ask(url, path)[::2] == (200, index), path
    for path in ("/page/no.js", "/page/../page.py", "/page/%2e%2e/page.py", "/page/symbol/x", "/page/views",
                 "/main.js", "/index.html", "/page/symbol/a/b/c"):  # fmt: skip
        assert ask(url, path)[0] == 404, path
    status, headers, body = ask(url, "/", "HEAD")
    assert (status, headers["content-length"], body) == (200, str(len(index)), b"")
    assert ask(url, "/", "POST")[0] == 405


def test_what_is_known_is_not_sent_again(redis_server: RedisServer, start: Start) -> None:
    _, url = start_relay(start, redis_server.url)
    tag = ask(url, "/page/main.js")[1]["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        status, headers, body = ask(url, "/page/main.js", If_None_Match=known)
        assert (status, headers["etag"], body) == (304, tag, b"")
    assert ask(url, "/page/main.js", If_None_Match='"other"')[0] == 200
    assert ask(url, "/page/dom.js")[1]["etag"] != tag


def test_browsers_are_told_to_load_nothing_else(redis_server: RedisServer, start: Start) -> None:
    _, url = start_relay(start, redis_server.url)
    host = url.removeprefix("ws://")
    policy = dict(
        each.strip().split(" ", 1) for each in ask(url, "/")[1]["content-security-policy"].split(";")
    )
    assert policy == {
        "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "img-src": "'self' data:",
        "connect-src": f"'self' ws://{host} wss://{host}", "base-uri": "'none'", "form-action": "'none'",
        "frame-ancestors": "'none'", "require-trusted-types-for": "'script'", "trusted-types": "'none'",
    }  # fmt: skip
    # a Host cannot add to it
    assert "script-src 'self';" in content_security_policy("localhost:1; script-src *")
    assert "*" not in content_security_policy("localhost:1; script-src *")


def test_rules_of_the_port_are_those_of_the_page(
    redis_server: RedisServer, start: Start, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_row("desk", TOKEN))
    _, url = start_relay(start, redis_server.url, "--tokens", str(tokens))
    assert ask(url, "/")[0] == ask(url, "/page/main.js")[0] == 200, "it has nothing of the bus in it"
    assert ask(url, "/api/snapshot")[0] == ask(url, "/api/status")[0] == 401
    assert ask(url, "/", Host="evil.example")[0] == 421
    assert ask(url, "/", Origin="https://evil.example")[0] == 403
    with socket.create_connection(tuple_of(url)) as raw:  # with Upgrade it is the listener's path, as before
        raw.sendall(handshake(f"/?token={TOKEN}", Host=url.removeprefix("ws://")))
        assert raw.recv(4096).split()[1] == b"101"


def test_relay_serves_without_the_page(tmp_path: Path) -> None:
    with pytest.raises((OSError, KeyError)):
        Page(tmp_path)


def test_wheel_has_the_page(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name.removeprefix("services/relay/static/") for name in archive.namelist()}
        assert FILES | {"tickbus.js"} <= inside
        assert archive.read("services/relay/static/tickbus.js") == CLIENT.read_bytes()


def test_page_makes_no_markup_from_text() -> None:
    banned = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function"
        r"|setHTML|srcdoc"
    )
    for name in FILES:
        assert not banned.search((FOLDER / name).read_text(encoding="utf-8")), name
