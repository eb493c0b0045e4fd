from hypothesis import given
from hypothesis import strategies as st

from services.gateway.upstream.backoff import Backoff


def test_delays_double_up_to_maximum_and_restart_after_reset() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [backoff.next() for _ in range(10)] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    backoff.reset()
    assert backoff.next() == 0.25


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 20), st.floats(0, 100))
def test_jitter_covers_half_the_delay_and_respects_minimum(random: float, tries: int, minimum: float) -> None:
    backoff = Backoff(lambda: random)
    for _ in range(tries):
        backoff.next()
    delay = min(30.0, 0.25 * 2**tries)
    waited = backoff.next(minimum)
    assert max(delay / 2, minimum) <= waited <= max(delay, minimum * 1.1)
