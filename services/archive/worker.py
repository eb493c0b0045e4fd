"""Reads recorded files in a process of its own, so that nothing waits for disks: see services.relay.recorded.

It takes requests from standard input and answers on standard output, one at a time, a page or nil. It ends
with its input, so also when the process that started it is killed.
"""

import logging
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from services.archive.page import Page, Request, framed
from services.archive.pages import RecordedPages
from tickbus.protocol.names import Stream, StreamId
from tickbus.service.logs import configure

log = logging.getLogger("tickbus.archive")


def main(data_dir: str, log_level: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the relay ends us
    configure(log_level)
    pages = RecordedPages(Path(data_dir))
    while (request := _receive(sys.stdin.buffer)) is not None:
        try:
            page = _answer(pages, request)
        except OSError as error:
            log.error("%s: recorded files cannot be read: %s", data_dir, error)
            page = None
        sys.stdout.buffer.write(framed(msgspec.msgpack.encode(page)))
        sys.stdout.buffer.flush()


def _answer(pages: RecordedPages, request: Request) -> Page:
    stream = Stream.parse(request.stream)
    if stream.kind == "bar":
        end = int(request.before) if request.before else (1 << 63) - 1
        return pages.bars(stream, int(request.after), end, request.limit)
    before = StreamId.parse(request.before) if request.before else None
    return pages.entries(stream, StreamId.parse(request.after), before, request.limit)


def _receive(source: BinaryIO) -> Request | None:
    size = source.read(4)
    if len(size) < 4:
        return None
    body = source.read(int.from_bytes(size, "big"))
    return msgspec.msgpack.decode(body, type=Request)


if __name__ == "__main__":
    main(*sys.argv[1:])
