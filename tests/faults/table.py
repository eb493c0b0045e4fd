"""The summary of a soak: what was injected, and what came of it."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from faults.rows import Row
from faults.run import Outcome

_FIGURES = ("sent", "published", "lost", "doubled", "reported", "resent")
"""Counters of a result that are summed up over the rounds."""


@dataclass
class Total:
    seed: int
    began: float = field(default_factory=time.monotonic)
    rounds: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    blamed: Counter[str] = field(default_factory=Counter)
    """Row -> rounds with a violation in which it was injected."""
    figures: Counter[str] = field(default_factory=Counter)
    violations: dict[int, list[str]] = field(default_factory=dict)
    slowest: float = 0.0
    after: str = ""
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Role -> the most memory of a process and its bound, in the round that came closest."""

    def add(self, number: int, outcome: Outcome) -> None:
        self.rounds += 1
        self.injected += outcome.injected
        result = outcome.result
        for name in _FIGURES:
            self.figures[name] += getattr(result, name)
        self.figures["restarts"] += outcome.restarts
        for role, found in result.memory.items():
            if role not in self.memory or found[0] / found[1] > self.memory[role][0] / self.memory[role][1]:
                self.memory[role] = found
        if outcome.slowest > self.slowest:
            self.slowest, self.after = outcome.slowest, outcome.after
        if result.verdicts:
            self.violations[number] = [str(verdict) for verdict in result.verdicts]
            self.blamed.update(outcome.injected.keys())

    def as_json(self) -> dict[str, object]:
        return {
            "seed": self.seed,
            "seconds": round(time.monotonic() - self.began),
            "rounds": self.rounds,
            "injected": dict(self.injected),
            **{name: self.figures[name] for name in (*_FIGURES, "restarts")},
            "slowest_recovery_seconds": round(self.slowest, 2),
            "slowest_after": self.after,
            "memory_bytes_and_bound": self.memory,
            "violations": self.violations,
        }


def show(total: Total, rows: Sequence[Row]) -> None:
    table = Table(title=f"seed {total.seed}: {total.rounds} rounds in {time.monotonic() - total.began:.0f} s")
    table.add_column("fault")
    table.add_column("injected", justify="right")
    table.add_column("in rounds with a violation", justify="right")
    for row in rows:
        table.add_row(row.name, str(total.injected[row.name]), str(total.blamed[row.name] or ""))
    table.add_section()
    figures = total.figures
    for name, value in (
        ("faults injected", sum(total.injected.values())),
        ("ticks sent", figures["sent"]),
        ("lost silently", figures["lost"]),
        ("doubled", figures["doubled"]),
        ("reported as gaps", figures["reported"]),
        ("lost by Redis and sent again", figures["resent"]),
        ("rounds with a violation", len(total.violations)),
        ("slowest recovery", f"{total.slowest:.1f} s ({total.after})"),
        *(
            (f"most memory of {role}", f"{most >> 20} of {bound >> 20} MB")
            for role, (most, bound) in total.memory.items()
        ),
    ):
        table.add_row(name, str(value), "")
    Console(width=120).print(table)
