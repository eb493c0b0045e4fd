"""What a signal found in its stream, before it is a message. Pure."""

from typing import NamedTuple

from services.signals.episode import Change
from tickbus.protocol.messages import SignalState


class Finding(NamedTuple):
    """One output of a signal."""

    name: str
    ts: int
    """ts_event, ns."""
    value: str
    threshold: str
    window: str
    unit: str
    message: str
    has_gap: bool
    state: SignalState = SignalState.INDICATOR
    direction: int = 0
    episode: int = 0
    partial: bool = False
    details: tuple[tuple[str, str], ...] = ()

    def changed(self, change: Change, threshold: str, message: str) -> "Finding":
        """Return it as the start or the end of an episode."""
        return self._replace(
            state=change.state, direction=change.direction, episode=change.episode,
            threshold=threshold, message=message,
        )  # fmt: skip


STARTS = SignalState.START
