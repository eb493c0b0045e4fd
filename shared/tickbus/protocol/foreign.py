"""What other programs wrote into a stream: how it is told from the entries of its writer. Pure.

Anybody can XADD. An entry is not ours if its counter is 0 (no writer begins below 1), or if it is no message
of its stream and its counter fits to neither neighbour, or if the one that follows the previous one comes
later. An unreadable entry whose counter does fit is ours: a newer version may have written it.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from tickbus.protocol.codec import DECODE, MALFORMED, TICK_FIELD


def split(entries: Sequence[Any], seq: int, kind: str) -> tuple[list[Any], list[Any]]:
    """Return the entries that are ours, and the others, each in order.

    entries: of a stream of this `kind`, as Redis returns them. seq: counter of the entry of ours that they
        follow; 0 if that is not known.
    """
    ours: list[Any] = []
    foreign: list[Any] = []
    last = seq
    seqs = [int(entry[0].partition(b"-")[2]) for entry in entries]
    newest_at = {found: at for at, found in enumerate(seqs)}
    for at, (entry, found) in enumerate(zip(entries, seqs, strict=True)):
        # whether the entry that follows the last one comes later
        passed_over = newest_at.get(last + 1, -1) > at
        if found == last + 1:
            is_ours = not passed_over or is_message(entry[1], kind)
        else:
            is_followed = at + 1 < len(seqs) and seqs[at + 1] == found + 1
            if passed_over or found == 0:
                is_ours = found > 0 and is_followed and is_message(entry[1], kind)
            else:
                is_ours = (is_followed and found > last) or is_message(entry[1], kind)
        if is_ours:
            ours.append(entry)
            last = found
        else:
            foreign.append(entry)
    return ours, foreign


def is_message(fields: Sequence[bytes], kind: str) -> bool:
    """Whether these are the fields of an entry of a stream of this kind."""
    if len(fields) != 2 or fields[0] not in (TICK_FIELD[kind], b"g"):
        return False
    try:
        DECODE[fields[0]](fields[1])
    except MALFORMED:
        return False
    return True


def flatten(entries: Sequence[Any]) -> list[Any]:
    """Return the entries with one field each: several become one without a name, which nobody can decode."""
    return [
        entry if len(entry[1]) == 2 else [entry[0], [b"", msgspec.msgpack.encode(entry[1])]]
        for entry in entries
    ]
