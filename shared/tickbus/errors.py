"""Every error that tickbus raises on purpose.

TickbusError                what went wrong and what to do about it, in one line
├── ConfigError             the operator's fault: an option, file or value is wrong       (exit 2)
├── RedisError              the server's fault
│   ├── RedisMisconfigured  reachable, but must not carry a bus with its current settings (exit 3)
│   └── RedisUnavailable    not reachable; fatal at startup, later waited for             (exit 3)
├── RelayError              a relay does not do what is asked of it                       (exit 3)
│   ├── RelayRefused        it refuses this client: token, origin, request
│   └── RelayUnavailable    not reachable; later waited for
├── VendorRefused           the vendor refused permanently: token, entitlement, URL       (exit 4)
├── Fenced                  another process writes this feed or shard now                 (exit 5)
└── WireError               bytes on the bus that this version cannot decode              (exit 1)

A service exits with the `exit_code` of the error that ended it; anything else that escapes is a bug, exit 1.
"""

from collections.abc import Iterable


class TickbusError(Exception):
    """Any error that tickbus raises on purpose; its text says what to do."""

    exit_code = 1
    """Of a service that it ends."""


class ConfigError(TickbusError):
    """An option, an argument, a file or a value in it is wrong."""

    exit_code = 2


class RedisError(TickbusError):
    """Redis does not do what is asked of it."""

    exit_code = 3


class RedisMisconfigured(RedisError):
    """Redis is reachable, but refuses, or must not carry a bus as it is configured."""


class RedisUnavailable(RedisError):
    """Redis is not reachable, or not ready."""


class RelayError(TickbusError):
    """A relay does not do what is asked of it."""

    exit_code = 3


class RelayRefused(RelayError):
    """The relay refuses this client: its token, its origin or its request."""


class RelayUnavailable(RelayError):
    """No relay is reachable."""


class VendorRefused(TickbusError):
    """The vendor refused for good: the token, the entitlement or the URL is wrong."""

    exit_code = 4


class Fenced(TickbusError):
    """Another process writes this feed, or these `shards` of a service, now."""

    exit_code = 5

    def __init__(self, text: str, shards: Iterable[int] = ()) -> None:
        """`shards`: those that another process writes now, where known."""
        super().__init__(text)
        self.shards = frozenset(shards)


class WireError(TickbusError):
    """Bytes on the bus are not a message that this version can read."""
