"""Recorded files, read in one worker process with a short queue: disks and pyarrow never delay a client."""

import asyncio
import logging
import sys
from asyncio.subprocess import PIPE, Process
from importlib.util import find_spec
from pathlib import Path

import msgspec

from services.archive.page import Page, Request, framed
from tickbus.errors import ConfigError
from tickbus.protocol.names import Stream, StreamId

log = logging.getLogger("tickbus.relay")

QUEUE = 16
"""Requests that may wait, the one that is read included."""
_PATIENCE_SECONDS = 8.0
"""A request is answered within this time: a handshake ends after ten seconds."""
_ANSWER_SECONDS = 30.0
"""A reader that takes longer is started again."""
_KINDS = ("trade", "quote", "bar", "signal")


class Unavailable(Exception):
    """The files cannot be read now. The text is for the client."""


class Recorded:
    def __init__(self, data_dir: Path, log_level: str) -> None:
        """data_dir: of a recorder. ConfigError if it cannot be read here."""
        if find_spec("pyarrow") is None:
            raise ConfigError("--data-dir needs pyarrow; fix: pip install 'tickbus-services[recorder]'")
        if not data_dir.is_dir():
            raise ConfigError(f"--data-dir {data_dir}: no such folder; expected the --data-dir of a recorder")
        self._data_dir = data_dir
        self._log_level = log_level
        self._worker: Process | None = None
        self._turn = asyncio.Lock()
        self._asking = 0

    @staticmethod
    def has(kind: str) -> bool:
        """Whether streams of this kind are recorded."""
        return kind in _KINDS

    async def bars(self, stream: Stream, begin: int, end: int | None, limit: int) -> Page:
        """Return the first `limit` bars with begin <= start < end (ns). Unavailable if that is impossible."""
        return await self._ask(Request(stream.name, str(begin), "" if end is None else str(end), limit))

    async def entries(self, stream: Stream, after: StreamId, before: StreamId | None, limit: int) -> Page:
        """Return the first `limit` entries between two IDs. Unavailable if that is impossible."""
        until = "" if before is None else str(before)
        return await self._ask(Request(stream.name, str(after), until, limit))

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None and self._worker.returncode is None:
            self._worker.kill()
        self._worker = None

    async def _ask(self, request: Request) -> Page:
        if self._asking >= QUEUE:
            raise Unavailable("too many requests for recorded files")
        self._asking += 1
        # shielded: an answer that nobody takes would be the next one's
        answer = asyncio.ensure_future(self._in_turn(request))
        answer.add_done_callback(_look_at_error)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await asyncio.shield(answer)
        except TimeoutError:
            raise Unavailable("recorded files are read too slowly now") from None

    async def _in_turn(self, request: Request) -> Page:
        try:
            async with self._turn:
                return await self._exchange(request)
        finally:
            self._asking -= 1

    async def _exchange(self, request: Request) -> Page:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                worker = await self._started()
                assert worker.stdin is not None
                assert worker.stdout is not None
                worker.stdin.write(framed(msgspec.msgpack.encode(request)))
                size = int.from_bytes(await worker.stdout.readexactly(4), "big")
                answer = await worker.stdout.readexactly(size)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            self.close()
            why = f"no answer within {_ANSWER_SECONDS:g} s" if isinstance(error, TimeoutError) else "it ended"
            log.error("%s: the reader of recorded files failed: %s; it starts again", self._data_dir, why)
            raise Unavailable("recorded files cannot be read now") from None
        page = msgspec.msgpack.decode(answer, type=Page | None)
        if page is None:
            raise Unavailable("recorded files cannot be read now")
        return page

    async def _started(self) -> Process:
        if self._worker is None or self._worker.returncode is not None:
            self._worker = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "services.archive.worker", str(self._data_dir), self._log_level,
                stdin=PIPE, stdout=PIPE,
            )  # fmt: skip
        return self._worker


def _look_at_error(answer: "asyncio.Future[Page]") -> None:
    """Nobody may be waiting any more: its error was logged where it happened."""
    if not answer.cancelled():
        answer.exception()
