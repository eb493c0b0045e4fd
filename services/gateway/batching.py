"""A late tick and the Gap that reports it as no longer missing are stored together. Pure.

If a gateway were killed between the two, the next one would find a tick that is stored and reported missing.
"""

from collections.abc import Sequence

from tickbus.writer.entry import Entry


def keep_pairs(entries: Sequence[Entry], limit: int) -> int:
    """Return how many of the oldest to take: `limit`, or one more where that keeps a tick with its Gap."""
    if 0 < limit < len(entries):
        last, following = entries[limit - 1], entries[limit]
        if following.field == b"g" and last.field != b"g" and following.stream is last.stream:
            return limit + 1
    return limit
