"""A late tick and the Gap which says that it is no longer missing are stored keep_pairs. Pure.

Were a gateway killed between the two, the next would find a tick that is there and told as missing.
"""

from collections.abc import Sequence

from tickbus.writer.entry import Entry


def keep_pairs(entries: Sequence[Entry], most: int) -> int:
    """How many of the oldest to take: `most`, or one more where that would part a tick from the Gap right behind it."""
    if 0 < most < len(entries):
        last, following = entries[most - 1], entries[most]
        if following.field == b"g" and last.field != b"g" and following.stream is last.stream:
            return most + 1
    return most
