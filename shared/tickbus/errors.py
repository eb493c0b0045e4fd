"""Every error that tickbus raises on purpose.

TickbusError                what went wrong and what to do about it, in one line
├── ConfigError             the operator's: an option, file or value is wrong        (exit 2)
├── RedisError              the server's
│   ├── RedisMisconfigured          reachable, but must not carry a bus as it is set         (exit 3)
│   └── RedisUnavailable           not reachable; at start fatal, later waited for          (exit 3)
├── VendorRefused           the vendor said no for good: token, entitlement, URL     (exit 4)
├── Fenced                  somebody else writes this feed or shard now              (exit 5)
└── WireError               bytes on the bus that are no message of this version     (exit 1)

A service ends with `exit_code` of the error that ended it; anything else that escapes is a bug, exit 1.
"""

from collections.abc import Iterable


class TickbusError(Exception):
    exit_code = 1


class ConfigError(TickbusError):
    exit_code = 2


class RedisError(TickbusError):
    exit_code = 3


class RedisMisconfigured(RedisError):
    pass


class RedisUnavailable(RedisError):
    pass


class VendorRefused(TickbusError):
    exit_code = 4


class Fenced(TickbusError):
    exit_code = 5

    def __init__(self, text: str, shards: Iterable[int] = ()) -> None:
        """`shards`: those that somebody else writes now, where that is known."""
        super().__init__(text)
        self.shards = frozenset(shards)


class WireError(TickbusError):
    pass
