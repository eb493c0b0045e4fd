"""Who may want what: `--wants`, a TOML file of rules, read again when it changes."""

import logging
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from tickbus.errors import ConfigError
from tickbus.protocol.names import FEED_KINDS
from tickbus.protocol.wants import Topic

log = logging.getLogger("tickbus.gateway")

ANY, NONE = "any", "none"
_MOST = 10_000
_MAX_PATTERN = 64
_MAX_STARS = 2


class Rule(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One [[holder]] of the file."""

    holder: str = "*"
    """Which holders: a pattern with * and ?."""
    kinds: tuple[str, ...] = FEED_KINDS
    symbols: tuple[str, ...] = ("*",)
    """Names or patterns."""
    most: int = _MOST
    """Most topics at a time, for each holder."""
    new_per_hour: int = _MOST
    """Most topics that a holder may begin to want within an hour: each may make a stream."""

    def allows(self, topic: Topic) -> bool:
        """Return whether its holders may want this; `most` and `new_per_hour` are for the caller."""
        return topic.kind in self.kinds and any(
            fnmatchcase(topic.symbol, pattern) for pattern in self.symbols
        )


class _File(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    holder: list[Rule]


class WantsPolicy:
    """The rules in force."""

    def __init__(self, choice: str = ANY) -> None:
        """choice: `any`, `none`, or the path of a file. ConfigError if that cannot be used."""
        self._path = None if choice in (ANY, NONE) else Path(choice)
        self.enabled = choice != NONE
        """Whether wants are looked at."""
        self._rules = [Rule()] if self._path is None else _read(self._path)
        self._stamp = self._look()

    def rule_of(self, holder: str) -> Rule | None:
        """Return the first rule for a holder; None: it may want nothing."""
        return next((rule for rule in self._rules if fnmatchcase(holder, rule.holder)), None)

    def reload(self) -> bool:
        """Read the file again if it changed. Return whether the rules changed; a bad file leaves them."""
        stamp = self._look()
        if self._path is None or stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            rules = _read(self._path)
        except ConfigError as error:
            log.error("%s; the rules before it stay in force", error)
            return False
        changed, self._rules = rules != self._rules, rules
        return changed

    def _look(self) -> tuple[int, int]:
        try:
            found = self._path.stat() if self._path is not None else None
        except OSError:
            return 0, 0
        return (0, 0) if found is None else (found.st_mtime_ns, found.st_size)


def _read(path: Path) -> list[Rule]:
    try:
        rules = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8-sig")), _File).holder
    except OSError as error:
        raise ConfigError(f"--wants {path}: {error.strerror}; expected any, none or a file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"--wants {path}: {error}; expected [[holder]] tables") from None
    for rule in rules:
        if not set(rule.kinds) <= set(FEED_KINDS):
            raise ConfigError(f"--wants {path}: holder {rule.holder!r}: kinds are {', '.join(FEED_KINDS)}")
        for pattern in (rule.holder, *rule.symbols):
            if len(pattern) > _MAX_PATTERN or pattern.count("*") > _MAX_STARS:
                raise ConfigError(
                    f"--wants {path}: pattern {pattern[:80]!r}: at most {_MAX_PATTERN} characters and"
                    f" {_MAX_STARS} *"
                )
    return rules
