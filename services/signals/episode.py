"""When an alert starts and ends: hysteresis and cool-down. Pure."""

from typing import NamedTuple

from tickbus.protocol.messages import SignalState


class Change(NamedTuple):
    """The start or the end of an episode."""

    state: SignalState
    direction: int
    episode: int
    """ts_event of its start."""


class Episode:
    """`cooldown`: after an end no start for so long, ns. `turns`: a new direction is a new episode."""

    __slots__ = ("_cooldown", "_turns", "direction", "ended", "start", "suppressed")

    def __init__(self, cooldown: int, *, turns: bool = False) -> None:
        self._cooldown = cooldown
        self._turns = turns
        self.start: int | None = None
        """ts_event of the start; None while there is no episode."""
        self.ended: int | None = None
        """ts_event of the newest end."""
        self.direction = 0
        self.suppressed = 0
        """Starts that fell into a cool-down, since creation."""

    def step(self, ts: int, *, on: bool, off: bool, direction: int = 0) -> list[Change]:
        """Return what an evaluation changes. ts: its time, ns, never decreasing. on: the start's condition is
        met; off: the end's. Never both.

        An episode that turns ends and starts in one step: its cool-down keeps an alert from flapping around
        one threshold, and this one has passed from one to the other.
        """
        changes: list[Change] = []
        turned = self._turns and direction == -self.direction != 0
        if self.start is not None:
            if not off and not turned:
                return changes
            changes.append(Change(SignalState.END, self.direction, self.start))
            self.start, self.ended = None, ts
            if not turned:
                return changes
        elif on and self.ended is not None and ts - self.ended < self._cooldown:
            self.suppressed += 1
            return changes
        if on:
            self.start, self.direction = ts, direction
            changes.append(Change(SignalState.START, direction, ts))
        return changes

    @property
    def state(self) -> tuple[int | None, int | None, int]:
        """What `restore` takes."""
        return self.start, self.ended, self.direction

    def restore(self, state: tuple[int | None, int | None, int]) -> None:
        """Continue from a state."""
        self.start, self.ended, self.direction = state
