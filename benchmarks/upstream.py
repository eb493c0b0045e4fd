"""The vendor of the benchmarks: a WebSocket server in its own process. It sends at full speed or at a rate.

    python -m benchmarks.upstream flood FILE          every subscriber gets all frames of FILE, once
    python -m benchmarks.upstream paced --dialect binance|json --symbols N --rate R --count C

It reports events on standard output, one JSON object per line: {"port"}, {"first_sent": monotonic ns},
{"all_sent"}; and exits when its standard input ends. One connection at a time. Frames go out from a file by
sendfile, so that the upstream costs the machine little and is never the bottleneck.
"""

import argparse
import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from benchmarks.frames import SyntheticTrade, binance_text, frame, json_text, market, read_chunks, symbols
from benchmarks.pacing import due


class Subscriber:
    """One client: its handshake, its subscriptions, its pings."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.open = True
        self.subscriptions: set[str] = set()
        """Requested streams or symbols, in the vendor's spelling."""
        self._protocol = ServerProtocol()

    def poll(self, timeout: float) -> None:
        """Wait up to `timeout` s for a message from the client and answer it. Only between whole frames."""
        if not select.select([self.sock], [], [], timeout)[0]:
            return
        data = self.sock.recv(65536)
        self._protocol.receive_data(data) if data else self._protocol.receive_eof()
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._protocol.send_response(self._protocol.accept(event))
                query = parse_qs(urlsplit(event.path).query)
                self.subscriptions.update(
                    stream for part in query.get("streams", []) for stream in part.split("/") if stream
                )
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._subscribe(json.loads(bytes(event.data)))
        for answer in self._protocol.data_to_send():
            self.sock.sendall(answer)
        self.open = bool(data)

    def _subscribe(self, message: dict[str, Any]) -> None:
        if message.get("action") == "subscribe":
            self.subscriptions.update(message["symbols"])
        elif message.get("method") == "SUBSCRIBE":
            self.subscriptions.update(message["params"])
            self._protocol.send_text(json.dumps({"result": None, "id": message["id"]}).encode())


def report(**event: object) -> None:
    """Print an event for `benchmarks.processes.Process.wait_event`."""
    print(json.dumps(event), flush=True)


def flood(path: Path) -> Callable[[Subscriber], None]:
    chunks = read_chunks(path)

    def send(client: Subscriber) -> None:
        with path.open("rb") as file:
            at = 0
            report(first_sent=time.monotonic_ns())
            for end in chunks:
                while at < end:
                    at += os.sendfile(client.sock.fileno(), file.fileno(), at, end - at)
                client.poll(0)
            report(all_sent=time.monotonic_ns())

    return send


def paced(dialect: str, names: list[str], rate: float, count: int) -> Callable[[Subscriber], None]:
    """Send one trade of every symbol within about a second, pause, then send `count` trades at `rate`.

    Each is stamped as it is sent. The stamp is the monotonic clock shifted to the epoch by a constant,
    `stamp_offset` ns, in us (binance) or ns (json).
    """
    text, unit = (binance_text, 1000) if dialect == "binance" else (json_text, 1)
    offset = time.time_ns() - time.monotonic_ns()
    # created in advance, so that only the text itself is computed between the stamp and the socket
    trades = list(market(names, count))
    firsts = [SyntheticTrade(name, 0, "1.00", "1.00", False) for name in names]
    first_ids = {trade.symbol: trade.id for trade in reversed(trades)}
    firsts = [trade._replace(id=first_ids.get(trade.symbol, 1) - 1) for trade in firsts]

    def stamped(batch: list[SyntheticTrade]) -> bytes:
        return b"".join([frame(text(trade, (time.monotonic_ns() + offset) // unit)) for trade in batch])

    def send(client: Subscriber) -> None:
        for at in range(0, len(firsts), 100):
            client.sock.sendall(stamped(firsts[at : at + 100]))
            client.poll(0.01)
        client.poll(1.0)
        report(first_sent=time.monotonic_ns(), stamp_offset=offset)
        at = 0
        for number in due(rate, count):
            client.sock.sendall(stamped(trades[at : at + number]))
            at += number
            if at % 64 < number:
                client.poll(0)
        report(all_sent=time.monotonic_ns())

    return send


def serve(send: Callable[[Subscriber], None], streams: int) -> None:
    """Serve clients one by one: wait until one has `streams` subscriptions, send, wait until it leaves."""
    listener = socket.create_server(("127.0.0.1", 0))
    report(port=listener.getsockname()[1])
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with sock:
            client = Subscriber(sock)
            try:
                while client.open and len(client.subscriptions) < streams:
                    client.poll(1.0)
                if client.open:
                    send(client)
                while client.open:
                    client.poll(1.0)
            except ConnectionError:
                continue


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.upstream")
    parser.add_argument("mode", choices=("flood", "paced"))
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--dialect", choices=("binance", "json"), default="binance")
    parser.add_argument("--symbols", type=int, required=True)
    parser.add_argument("--rate", type=float, default=1000.0)
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args()
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    names = symbols(options.symbols)
    if options.mode == "flood":
        serve(flood(options.file), len(names))
    else:
        serve(paced(options.dialect, names, options.rate, options.count), len(names))


if __name__ == "__main__":
    main()
