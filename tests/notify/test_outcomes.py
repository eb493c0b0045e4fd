"""What an answer means, and when the next attempt is due."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notify.outcomes import DEAD_REASONS, RETRY_REASONS, Verdict, backoff, judge, parse_retry_after
from tickbus.units import MINUTE, SECOND

NOW = 1_795_845_600.0


@pytest.mark.parametrize(
    ("statuses", "verdict", "reason"),
    [
        ((200, 201, 202, 204, 299), Verdict.DELIVERED, ""),
        ((301, 302, 303, 304, 307, 308), Verdict.REFUSED, "redirect"),
        ((400, 401, 403, 404, 405, 410, 413, 422, 451), Verdict.REFUSED, "refused"),
        ((408, 425, 500, 502, 503, 504, 599, 600), Verdict.RETRY, "status"),
        ((429,), Verdict.RETRY, "rate_limit"),
    ],
)
def test_verdicts(statuses: tuple[int, ...], verdict: Verdict, reason: str) -> None:
    for status in statuses:
        outcome = judge(status, None, NOW)
        assert (outcome.verdict, outcome.reason, outcome.status) == (verdict, reason, status)


@given(st.integers(100, 999))
def test_every_reason_has_a_metric(status: int) -> None:
    outcome = judge(status, None, NOW)
    allowed = {Verdict.RETRY: RETRY_REASONS, Verdict.REFUSED: DEAD_REASONS, Verdict.DELIVERED: ("",)}
    assert outcome.reason in allowed[outcome.verdict]


def test_retry_after_is_a_number_or_a_date() -> None:
    at = datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=90)
    assert parse_retry_after("120", NOW) == 120
    assert parse_retry_after(" 0 ", NOW) == 0
    assert parse_retry_after(format_datetime(at, usegmt=True), NOW) == 90
    assert parse_retry_after(format_datetime(at - timedelta(hours=1), usegmt=True), NOW) == 0
    assert parse_retry_after("9" * 400, NOW) == 86_400
    assert judge(503, "7", NOW).pause == judge(429, "7", NOW).pause == 7
    assert judge(200, "7", NOW).pause == 0


@given(st.text())
def test_any_other_text_is_no_wait(text: str) -> None:
    assert 0 <= parse_retry_after(text, NOW) <= 86_400


@given(st.integers(1, 1000), st.floats(0, 1))
def test_backoff_doubles_up_to_its_limit(attempt: int, chance: float) -> None:
    full = min(60.0, 2.0 ** (attempt - 1))
    wait = backoff(attempt, SECOND, MINUTE, lambda: chance)
    assert full / 2 <= wait <= full
    assert wait == pytest.approx(full * (0.5 + chance / 2))
