"""The JavaScript client in a real browser, in a page of another origin, with a token."""

import asyncio
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
from clients.test_js import TRADES, write
from relay.test_server import TOKEN, token_row
from support.javascript import CLIENT
from support.processes import Process
from support.redis_server import RedisServer, require_program
from support.relay import start_relay
from support.writing import Writer

from tickbus.protocol.messages import Side, Trade

NS = 1_795_847_345_011_000_001
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--dump-dom",
)  # fmt: skip
PAGE = """<!doctype html>
<title>trades</title>
<pre></pre>
<img src="/held" alt="">
<script type="module">
  const output = document.querySelector("pre");
  try {
    const { connect } = await import("/tickbus.js");
    const bus = connect("RELAY", { token: "TOKEN" });
    const elements = [];
    for await (const element of bus.read("trade", { symbols: ["A"], from: "start" })) {
      elements.push(element);
      if (elements.length === 100) break;
    }
    const snapshot = await bus.snapshot("trade", { symbols: ["A"] });
    const exact = (_, value) => (typeof value === "bigint" ? `${value}n` : value);
    output.textContent = JSON.stringify([elements, snapshot.data], exact);
  } catch (error) {
    output.textContent = JSON.stringify(`${error}`);
  } finally {
    await fetch("/release");
  }
</script>
"""


class Site(ThreadingHTTPServer):
    """Serves a page and the module. The picture in the page is held until the page has what it wants: only
    then is it loaded, and the browser prints it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.page = ""
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        site = cast(Site, self.server)
        kind, body = "text/plain", ""
        match self.path:
            case "/":
                kind, body = "text/html", site.page
            case "/tickbus.js":
                kind, body = "text/javascript", (CLIENT / "tickbus.js").read_text(encoding="utf-8")
            case "/held":
                site.released.wait(40)
            case "/release":
                site.released.set()
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        serving = threading.Thread(target=site.serve_forever)
        serving.start()
        yield site
        site.released.set()
        site.shutdown()
        serving.join()


@pytest.mark.timeout(120)
async def test_page_reads_what_the_bus_holds(
    redis_server: RedisServer, start: Callable[..., Process], tmp_path: Path, site: Site
) -> None:
    chromium = require_program("chromium")
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_row("page", TOKEN))
    _, url = start_relay(start, redis_server.url, "--tokens", str(tokens), "--origins", site.url)
    site.page = PAGE.replace("RELAY", url).replace("TOKEN", TOKEN)
    writer = await Writer(redis_server.url).open()
    trades = [
        Trade("A", f"{number}.10", "0.1", Side.BUY, str((1 << 60) + number), NS + number, NS)
        for number in range(100)
    ]
    expected = await write(writer, *((TRADES, trade) for trade in trades))
    writer.close()
    done = await asyncio.to_thread(
        subprocess.run,
        [chromium, *SWITCHES, f"--user-data-dir={tmp_path / 'profile'}", site.url],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert "<pre>" in done.stdout, done.stderr
    shown = done.stdout.partition("<pre>")[2].partition("</pre>")[0]
    assert json.loads(shown) == [expected, expected[-1:]]
