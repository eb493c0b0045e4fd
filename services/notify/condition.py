"""The condition of the receiver, as its attempts show it: for the log, status, readiness and metrics."""

import logging
from collections import Counter
from collections.abc import Callable

from services.notify.outcomes import Outcome
from services.notify.receiver import Receiver
from tickbus.protocol.names import Stream

log = logging.getLogger("tickbus.notify")

_LOG_SECONDS = 60.0
"""A receiver that fails now and then is logged at most this often, and so are dead letters of one reason: all
of it is counted."""


class Condition:
    """An outage begins with a failed attempt, and ends when no stream has one behind it any more."""

    def __init__(self, receiver: Receiver, monotonic: Callable[[], float]) -> None:
        self._receiver = receiver
        self._monotonic = monotonic
        self._failing: dict[Stream, str] = {}
        """Streams whose next alert failed -> the last reason, in words."""
        self._outage = ""
        """How the outage began; empty while there is none."""
        self._began = 0.0
        self._warned_at = -_LOG_SECONDS
        self._is_logged = False
        """Whether this outage is in the log."""
        self._dead_logged: dict[str, float] = {}
        self._last_dead = ""
        """Of the last dead letter, if nothing was delivered since."""
        self.sent: Counter[str] = Counter()
        self.retried: Counter[str] = Counter()
        self.dead: Counter[str] = Counter()

    def delivered(self, stream: Stream, kind: str) -> None:
        self.sent[kind] += 1
        self._last_dead = ""
        self.leave(stream)

    def failed(self, stream: Stream, outcome: Outcome) -> None:
        self.retried[outcome.reason] += 1
        self._failing[stream] = outcome.detail
        now = self._monotonic()
        if not self._outage:
            self._outage, self._began, self._is_logged = outcome.detail, now, False
        if not self._is_logged and now - self._warned_at >= _LOG_SECONDS:
            self._is_logged, self._warned_at = True, now
            log.warning(
                "receiver %s: %s (%s); trying again, alerts wait; tickbus status shows how many",
                self._receiver.name, outcome.detail, stream.name,
            )  # fmt: skip

    def dead_letter(self, stream: Stream, reason: str, detail: str, key: str, where: str) -> None:
        self.dead[reason] += 1
        self._last_dead = f"{reason}: {detail}"
        now = self._monotonic()
        if now - self._dead_logged.get(reason, -_LOG_SECONDS) >= _LOG_SECONDS:
            self._dead_logged[reason] = now
            log.error(
                "receiver %s: not delivered, %s (%s): %s; stored at %s; more of this reason are only counted "
                "for %d s", self._receiver.name, reason, detail, key, where, _LOG_SECONDS,
            )  # fmt: skip
        self.leave(stream)

    def leave(self, stream: Stream, is_mended: bool = True) -> None:
        """Nothing of this stream is failing any more; or it is not ours any more."""
        if self._failing.pop(stream, None) is not None and not self._failing:
            seconds = self._monotonic() - self._began
            self._outage = ""
            if self._is_logged and is_mended:
                log.info("receiver %s: no alert fails any more, after %.0f s", self._receiver.name, seconds)

    @property
    def is_failing(self) -> bool:
        return bool(self._outage)

    def outage(self, waiting: int, oldest: float) -> str:
        """Return what fails, in a line; empty if nothing does. `oldest`: age of the oldest alert, s."""
        detail = next(iter(self._failing.copy().values()), "")
        name = self._receiver.name
        return detail and (
            f"receiver {name}: {detail}; {waiting} alerts wait in memory, the oldest for {oldest:.0f} s"
        )

    @property
    def refusals(self) -> str:
        """What becomes dead letters, in a line; empty if the receiver took an alert since."""
        return self._last_dead and (
            f"receiver {self._receiver.name}: alerts go to the dead letters ({self._last_dead}); "
            f"{self.dead.total()} since the start"
        )
