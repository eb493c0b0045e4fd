"""The parameters in force, one set for all replicas: in `tickbus:meta`, each under a number of its own.

A replica that has a file claims the next number when the file changes; all of them follow the highest number.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from services.signals.parameters import ParameterSet, parse
from tickbus.errors import ConfigError
from tickbus.protocol.names import Keys
from tickbus.redis.link import Connection

log = logging.getLogger("tickbus.signals")

_KEPT = 2
"""Sets that stay in `meta`: the one in force and the one before."""
_MAX_BYTES = 1 << 18


class ParameterStore:
    """path: a file of this replica; None: it only follows."""

    def __init__(self, keys: Keys, service: str, path: Path | None) -> None:
        self._keys = keys
        self._prefix = f"params:{service}:"
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._refused = 0
        """Number of a stored set that cannot be read, and was said to be so."""
        self.current = ParameterSet()

    async def look(self, link: Connection) -> ParameterSet:
        """Return the set in force, after a look at the file and at the bus. ConfigError if the file cannot be
        used at the first look, and there is no other set.
        """
        stored = await self._stored(link)
        self._follow(stored)
        text = self._changed_file(bool(stored))
        if text is not None and text != self.current.text:
            number = max(stored, default=0) + 1
            if await link.ask("HSETNX", self._keys.meta, f"{self._prefix}{number}", text):
                old = [f"{self._prefix}{one}" for one in stored if one <= number - _KEPT]
                if old:
                    await link.ask("HDEL", self._keys.meta, *old)
                log.info("parameters %d are in force: %s", number, self._path)
            self._follow(await self._stored(link))
        return self.current

    async def _stored(self, link: Connection) -> dict[int, str]:
        flat = await link.ask("HGETALL", self._keys.meta) or []
        prefix, found = self._prefix.encode(), {}
        for name, value in zip(flat[::2], flat[1::2], strict=True):
            number = name.removeprefix(prefix)
            if name.startswith(prefix) and number.isdigit() and len(number) < 10:
                found[int(number)] = value.decode(errors="replace")
        return found

    def _follow(self, stored: Mapping[int, str]) -> None:
        number = max(stored, default=0)
        if number <= self.current.number or number == self._refused:
            return
        try:
            self.current = parse(stored[number], number)
        except ConfigError as error:
            self._refused = number
            log.error(
                "parameters %d on the bus cannot be used: %s; those of number %d stay in force",
                number, error, self.current.number,
            )  # fmt: skip

    def _changed_file(self, others: bool) -> str | None:
        """Return the file's text if it changed and can be used."""
        if self._path is None:
            return None
        first, stamp = self._stamp is None, self._look_at(self._path)
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            if stamp[1] > _MAX_BYTES:
                raise ConfigError(f"{stamp[1]} bytes, at most {_MAX_BYTES} are read")
            text = self._path.read_text(encoding="utf-8-sig")
            parse(text)
        except (OSError, UnicodeDecodeError, ConfigError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            line = f"--parameters {self._path}: {reason}"
            if first and not others:
                raise ConfigError(line) from None
            log.error("%s; parameters %d stay in force", line, self.current.number)
            return None
        return text

    @staticmethod
    def _look_at(path: Path) -> tuple[int, int]:
        try:
            found = path.stat()
        except OSError:
            return 0, 0
        return found.st_mtime_ns, found.st_size
