"""One round: a fresh system, the faults of a plan, heal, drain, check."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from faults.checker import Result, Verdict
from faults.plan import Injection, Round
from faults.rows import Act
from faults.system import UNAVAILABLE, System

_STEP = 0.05
_RECOVERY_SECONDS = 60.0
_LATE_SECONDS = 20.0
"""How long after the planned end a fault may begin that waited for another one on its target."""
Print = Callable[[str], None]


@dataclass
class Outcome:
    result: Result
    injected: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    """Planned but not done: another fault had the target until the end of the round."""
    slowest: float = 0.0
    """The longest time from the last heal until everything had caught up, in seconds."""
    after: str = ""
    """The fault that was healed last before that."""
    restarts: int = 0


class Runner:
    """Injects and heals by the clock, while the supervisor keeps working."""

    def __init__(self, system: System, report: Print) -> None:
        self._system = system
        self._report = report
        self._active: list[tuple[float, Injection, str]] = []
        self._healed_at: float | None = None
        self._healed = ""
        self.outcome = Outcome(Result())

    def run(self, injections: tuple[Injection, ...]) -> Outcome:
        began = time.monotonic()
        waiting = list(injections)
        end = began + max((one.at + one.seconds for one in injections), default=0.0) + _LATE_SECONDS
        while waiting or self._active:
            now = time.monotonic()
            for one in [one for one in waiting if began + one.at <= now]:
                if now > end:
                    self.outcome.skipped[one.row.name] += 1
                    waiting.remove(one)
                elif self._inject(one, now):
                    waiting.remove(one)
            for due in [due for due in self._active if due[0] <= now]:
                self._heal(due)
            self._system.supervise()
            self._check_recovery()
            time.sleep(_STEP)
        self._settle()
        return self.outcome

    def _inject(self, one: Injection, now: float) -> bool:
        target = self._target(one)
        if target is None:
            return False
        self._report(f"inject {one.row.name} on {target} for {one.seconds:.1f} s")
        self._do(one.row.inject, one, target)
        self._active.append((now + one.seconds, one, target))
        self.outcome.injected[one.row.name] += 1
        self._healed_at = None
        return True

    def _target(self, one: Injection) -> str | None:
        """Return the process or link; None while another fault has it, or what the fault needs is
        unavailable."""
        system, target = self._system, one.row.target
        taken = {name for _, _, name in self._active}
        if target == "redis":
            # it must run to be killed, and answer to be configured
            return None if "redis" in taken else target
        if target in ("vendor", "disk", "clock", "wants"):
            return None if target in taken else target
        kind, _, role = target.rpartition("-")
        names = system.of(role)
        first = (system.active_gateway() if role == "gateway" and one.number % 2 == 0 else None) or names[
            one.number % len(names)
        ]
        name = f"{kind}-{first}" if kind else first
        return None if name in taken else name

    def _heal(self, due: tuple[float, Injection, str]) -> None:
        self._active.remove(due)
        _, one, target = due
        self._do(one.row.heal, one, target)
        self._report(f"heal   {one.row.name} on {target}")
        self._healed_at, self._healed = time.monotonic(), one.row.name

    def _do(self, act: Act, one: Injection, target: str) -> None:
        try:
            act(self._system, target)
        except (AssertionError, *UNAVAILABLE) as error:
            self._system.verdicts.append(
                Verdict("harness", one.row.name, f"could not be injected or healed: {str(error)[:500]}")
            )

    def _check_recovery(self) -> None:
        """Between faults: see whether everything has caught up since the last heal."""
        if self._active or self._healed_at is None:
            return
        try:
            caught_up = self._system.caught_up()
        except UNAVAILABLE:
            return
        if caught_up:
            self._recovered(time.monotonic() - self._healed_at)

    def _recovered(self, seconds: float) -> None:
        self._healed_at = None
        if seconds > self.outcome.slowest:
            self.outcome.slowest, self.outcome.after = seconds, self._healed

    def _settle(self) -> None:
        began = self._healed_at or time.monotonic()
        try:
            self._system.until(self._system.caught_up, _RECOVERY_SECONDS, "everything has caught up")
        except AssertionError as error:
            self._system.verdicts.append(Verdict("stuck", f"after {self._healed}", str(error)))
        self._recovered(time.monotonic() - began)


def run_round(folder: Path, plan: Round, report: Print) -> Outcome:
    """Run one round and check it. AssertionError only if the system does not even start."""
    system = System(folder, plan.shape)
    try:
        system.start()
        outcome = Runner(system, report).run(plan.injections)
        try:
            system.drain()
        except AssertionError as error:
            system.verdicts.append(Verdict("stuck", "drain", str(error)[:500]))
        outcome.result = system.finish()
        outcome.restarts = system.restarts
        if outcome.result.verdicts:
            system.disk.keep(folder / "data-kept")
            system.spill_disk.keep(folder / "spill-kept")
        return outcome
    finally:
        system.close()
