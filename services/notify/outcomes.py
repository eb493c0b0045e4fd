"""What an attempt came to, and when the next one is due. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum

from tickbus.units import SECOND

_MOST_SECONDS = 86_400.0
"""No Retry-After is believed beyond this."""
_RETRIED = (408, 425, 429)
"""Statuses of the 4xx that a repeat may change."""

RETRY_REASONS = ("connect", "timeout", "status", "rate_limit", "apprise")
DEAD_REASONS = ("refused", "redirect", "expired", "unreadable")


class Verdict(Enum):
    DELIVERED = 1
    RETRY = 2
    REFUSED = 3
    """For good: the same request would be refused again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    verdict: Verdict
    reason: str = ""
    """Of RETRY_REASONS or DEAD_REASONS."""
    detail: str = ""
    """For people; without secrets."""
    status: int | None = None
    pause: float = 0.0
    """Seconds for which the receiver wants no request at all."""


def judge(status: int, retry_after: str | None, now: float) -> Outcome:
    """Return what an answer means. `now`: seconds since the epoch, for a Retry-After that is a date."""
    detail = f"status {status}"
    if 200 <= status < 300:
        return Outcome(Verdict.DELIVERED, status=status)
    if 300 <= status < 400:
        return Outcome(Verdict.REFUSED, "redirect", f"{detail}: redirects are not followed", status)
    pause = parse_retry_after(retry_after, now)
    if status == 429:
        return Outcome(Verdict.RETRY, "rate_limit", detail, status, pause)
    if 400 <= status < 500 and status not in _RETRIED:
        return Outcome(Verdict.REFUSED, "refused", detail, status)
    return Outcome(Verdict.RETRY, "status", detail, status, pause)


def parse_retry_after(text: str | None, now: float) -> float:
    """Return the seconds that a Retry-After asks for, a number or a date; 0 if it is absent or neither."""
    if not text:
        return 0.0
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return min(_MOST_SECONDS, float(text[:9]))
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    seconds = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp() - now
    return min(_MOST_SECONDS, max(0.0, seconds))


def backoff(attempt: int, first: int, most: int, random: Callable[[], float]) -> float:
    """Return the seconds to wait after failed attempt number `attempt` (from 1): doubling, the upper half
    of it by chance, so that streams which failed together do not come back together.

    first, most: ns. random: from 0 to 1.
    """
    full = min(most, first << min(attempt - 1, 40)) / SECOND
    return full * (0.5 + 0.5 * random())
