"""Subscriptions at run time: what holders want, and what became of it. Pure.

A holder, an app or a relay, has a hash of its own with a field for each stream that it wants, ended by Redis
when the holder does not renew it. The gateway answers in a hash per shard: docs/wire-format.md has the keys.
"""

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import msgspec

from tickbus.errors import ConfigError
from tickbus.protocol.names import FEED_KINDS, check_symbol

WANT_TTL_MS = 15_000
"""How long a want lives after its holder's last renewal, which is due at every third of that."""
_MAX_TTL_MS = 30_000
"""Its renewals are then well within the time after which an absent want counts as ended."""
"""A third of it is WANT_TTL_MS: so long a gateway waits, after an outage, for holders to renew."""
_HOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

State = Literal["active", "pending", "refused", "lingering"]


class Topic(NamedTuple):
    """What can be subscribed to: the trades or the quotes of a symbol.

    Topic("trade", "BTC-USDT")
    """

    kind: str
    symbol: str
    """The canonical symbol."""

    @property
    def field(self) -> str:
        """How it is written in the hashes: `trade BTC-USDT`."""
        return f"{self.kind} {self.symbol}"

    @classmethod
    def parse(cls, field: bytes) -> "Topic":
        """Parse a field of the hashes. ValueError if it is none: some other program wrote it."""
        kind, _, symbol = field.decode("ascii", "replace").partition(" ")
        try:
            check_symbol(symbol)
        except ConfigError:
            kind = ""
        if kind not in FEED_KINDS:
            raise ValueError(f"invalid want {field[:80]!r}: expected e.g. trade BTC-USDT")
        return cls(kind, symbol)


class SubscriptionState(msgspec.Struct, frozen=True):
    """What became of a subscription at the vendor.

    state: `active`: the vendor acknowledged it. `pending`: it is being subscribed to. `refused`: see
        `reason`. `lingering`: nobody wants it any more; it ends soon.
    since: since when, in ms since the epoch.
    reason: why it is refused, or not active yet, in words.
    fixed: whether the gateway's own options ask for it.
    """

    state: State
    since: int
    reason: str = ""
    fixed: bool = False

    def encode(self) -> bytes:
        """Return it as JSON, as it is stored."""
        return msgspec.json.encode(self)


_decode_state = msgspec.json.Decoder(SubscriptionState).decode


def decode_states(pairs: Mapping[bytes, bytes]) -> dict[Topic, SubscriptionState]:
    """Return the states in a hash of a gateway; what some other program wrote there is left out."""
    states = {}
    for field, value in pairs.items():
        try:
            states[Topic.parse(field)] = _decode_state(value)
        except (ValueError, msgspec.MsgspecError):
            continue
    return states


def check_holder(holder: str) -> str:
    """Return the name of a holder of wants. ConfigError if it is invalid."""
    if not _HOLDER.fullmatch(holder):
        raise ConfigError(
            f"invalid holder {holder!r}: expected letters, digits . _ - (at most 128), starting with a letter"
            " or digit"
        )
    return holder


def check_ttl(ttl_ms: int) -> int:
    """Return the time that a want lives without renewal, in ms. ConfigError unless it is 1 s to 30 s."""
    if not 1_000 <= ttl_ms <= _MAX_TTL_MS:
        raise ConfigError(f"invalid lease of {ttl_ms} ms: expected 1s to {_MAX_TTL_MS // 1000}s")
    return ttl_ms


STATES = get_args(State)
"""All values of State."""
