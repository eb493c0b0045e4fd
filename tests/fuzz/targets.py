"""The registry: every target by name. A new reader of what others write gets a target here."""

from fuzz import endpoint, files, frames, relay, stored
from fuzz.engine import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (*frames.TARGETS, *stored.TARGETS, *endpoint.TARGETS, *files.TARGETS, *relay.TARGETS)
}


def choose(words: str) -> list[Target]:
    """Return the targets whose names begin with one of `words`, separated by commas; all if it is empty.

    ValueError for a word that no name begins with.
    """
    if not words:
        return list(TARGETS.values())
    chosen: dict[str, Target] = {}
    for word in words.split(","):
        found = {name: target for name, target in TARGETS.items() if name.startswith(word.strip())}
        if not found:
            raise ValueError(
                f"--targets: no target begins with {word!r}; expected one of {', '.join(TARGETS)}"
            )
        chosen |= found
    return list(chosen.values())
