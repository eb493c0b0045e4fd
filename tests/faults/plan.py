"""Which faults, when, on which target and for how long: all of it follows from the seed. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from faults.rows import Row
from faults.system import Shape

_LONG = 20.0
"""Faults longer than this many seconds get a round with room for them, and are chosen less often."""


@dataclass(frozen=True)
class Injection:
    row: Row
    number: int
    """Which replica, counted from 0, modulo the number there are. For gateways, even means the active one."""
    at: float
    """Seconds from the start of the round."""
    seconds: float

    def __str__(self) -> str:
        return f"{self.at:5.1f} s {self.row.name} for {self.seconds:.1f} s"


@dataclass(frozen=True)
class Round:
    shape: Shape
    injections: tuple[Injection, ...]


def draw(
    rows: Sequence[Row],
    seed: int,
    number: int,
    done: Mapping[str, int],
    *,
    seconds: float,
    rate: int,
    clock: bool,
) -> Round:
    """Return round `number` of a soak. Rows injected least so far come first: the whole matrix gets its
    share."""
    chance = Random(f"{seed}:{number}")
    special = {row.only for row in rows} - {None}
    kinds = [
        kind
        for kind in ("server", "server", "server", "sentinel", "cluster")
        if not special or kind in special
    ]
    shape = Shape(
        redis=chance.choice(kinds),
        gateways=chance.choice((1, 1, 2)),
        bars=chance.choice((1, 2, 3)),
        recorders=chance.choice((1, 2)),
        rate=rate,
        seed=chance.randrange(1 << 30),
        clock=chance.random() < 0.5 and clock,
        backlog=chance.choice(("1MB", "4MB", "64MB")),
        spill=chance.choice(("256KB", "8MB", "48MB")),
        attacked=any(row.expected for row in rows),
        relays=0 if any(row.expected for row in rows) else 2,
    )
    usable = [row for row in rows if row.fits(shape)]
    # What Redis acknowledged and lost, the gateway sends again. A round has faults that make Redis lose
    # entries, or faults that take the gateway's copy of them, never both.
    lossy = chance.random() < 0.5
    usable = [row for row in usable if not (row.takes_copy(shape) if lossy else row.loses)] or usable
    if shape.gateways > 1:
        # a flush takes the lease too: a standby would take over
        usable = [row for row in usable if row.name != "redis-flush"] or usable
    count = max(1, round(seconds / chance.choice((1.0, 1.5, 2.5))))
    if shape.attacked:
        count = max(1, count // 2)  # floods take seconds each, and the vendor one at a time
    counts = {row.name: done.get(row.name, 0) for row in usable}
    chosen: list[Row] = []
    while usable and len(chosen) < count:
        # long faults count four times: a soak of minutes must not consist of them
        least = min(counts[row.name] * (4 if row.seconds[1] > _LONG else 1) for row in usable)
        row = chance.choice(
            [row for row in usable if counts[row.name] * (4 if row.seconds[1] > _LONG else 1) <= least + 1]
        )
        chosen.append(row)
        counts[row.name] += 1
        if row.once or row.seconds[1] > _LONG:
            usable = [
                other
                for other in usable
                if other is not row and not (row.seconds[1] > _LONG and other.target == row.target)
            ]
    return Round(shape, tuple(sorted(_placed(chosen, chance, seconds), key=lambda one: one.at)))


def alone(plan: Round) -> Round:
    """The same round without bars, recorders and relays, and without the faults on them."""
    others = ("bars", "recorder", "disk", "relay")
    kept = tuple(one for one in plan.injections if not one.row.target.endswith(others))
    return Round(replace(plan.shape, bars=0, recorders=0, relays=0), kept)


def _placed(chosen: Sequence[Row], chance: Random, seconds: float) -> list[Injection]:
    """Place them at random times, in clusters with quiet in between."""
    clusters = sorted(chance.uniform(0, seconds) for _ in range(max(1, len(chosen) // 3)))
    placed = []
    for row in chosen:
        at = min(seconds, max(0.0, chance.choice(clusters) + chance.uniform(-0.5, 1.5)))
        long = row.seconds[1] > _LONG
        placed.append(Injection(row, chance.randrange(6), 0.0 if long else at, chance.uniform(*row.seconds)))
    return placed
