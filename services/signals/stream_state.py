"""The state of one stream's signals: a part that changes with every entry, and parts written once. Pure.

Integers of any size are text: MessagePack's end at 64 bits.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from tickbus.errors import WireError
from tickbus.fixed_point import TENS

VERSION: Final = 1
_MAX_SCALE = len(TENS) // 2 - 1

EpisodeState = tuple[int | None, int | None, int]


class HotState(msgspec.Struct, array_like=True, frozen=True):
    """What changes with every entry."""

    version: int
    price_scale: int
    size_scale: int
    ts: int
    """The stream's newest time, ns; 0 before the first."""
    count: int = 0
    """Kept trades so far; of quotes 0."""
    known: int = 0
    tail: str = ""
    panes: str = ""
    gap_at: int = -1
    """`count` at the newest hole; -1: there was none."""
    gap_to: int = 0
    """End of the newest hole, ns."""
    prices: tuple[str, ...] = ()
    """The newest price, and the newest that differed from it."""
    episodes: dict[str, EpisodeState] = {}
    windows: dict[str, tuple[int, int]] = {}
    """Signal -> length of its window, and `count` when it began."""
    profile: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(HotState).decode
_decode_version = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


class OtherVersion(WireError):
    """The state was written by another version of this program."""


def dump(hot: HotState, parts: Mapping[str, str]) -> dict[str, bytes]:
    """Return the fields to store: the hot part under the empty name."""
    return {"": _encode(hot), **{name: text.encode() for name, text in parts.items()}}


def load(stored: Mapping[str, bytes]) -> tuple[HotState, dict[str, str]]:
    """Return what `dump` was given, with all parts. WireError if that is impossible, OtherVersion if another
    version wrote it.
    """
    try:
        head = _decode_version(stored[""])
        version = msgspec.msgpack.decode(head[0], type=int) if head else 0
        if version == VERSION:
            hot = _decode(stored[""])
            if not (0 <= hot.price_scale <= _MAX_SCALE and 0 <= hot.size_scale <= _MAX_SCALE):
                raise ValueError(f"invalid scales {hot.price_scale}, {hot.size_scale}")
            return hot, {name: value.decode() for name, value in stored.items() if name}
    except (msgspec.MsgspecError, ValueError, KeyError, RecursionError) as error:
        raise WireError(f"cannot decode the stored state of signals: {error}") from None
    raise OtherVersion(
        f"the state of signals has version {version}, this program reads {VERSION}: run the one that wrote it"
    )
