"""Receive times on the vendor's clock."""

from services.gateway.sequencing.latency import MinLatency

SECOND = 1_000_000_000


def test_before_any_tick_the_clocks_are_one() -> None:
    latency = MinLatency()
    latency.measure([(0, 0)])
    assert (latency.missing_from(100), latency.missing_to(200)) == (100, 200)


def test_a_delayed_feed_is_delayed_on_both_sides() -> None:
    latency = MinLatency()
    latency.measure([(1000 * SECOND, 1900 * SECOND), (1001 * SECOND, 1901 * SECOND)])
    assert (latency.missing_from(1901 * SECOND), latency.missing_to(1950 * SECOND)) == (
        1001 * SECOND,
        1050 * SECOND,
    )


def test_what_a_gateway_finds_that_stood_still_is_old_and_what_comes_next_is_not() -> None:
    latency = MinLatency()
    latency.measure([(1000 * SECOND, 1000 * SECOND + 5)])
    # it stood still for 6 s, read one old frame, and was replaced
    latency.measure([(1001 * SECOND, 1007 * SECOND), (999 * SECOND, 999 * SECOND + 5)])
    assert latency.missing_from(1007 * SECOND) == 1001 * SECOND
    assert latency.missing_to(1020 * SECOND) == 1020 * SECOND - 5


def test_quotes_without_a_time_of_their_own_say_nothing() -> None:
    latency = MinLatency()
    latency.measure([(1001 * SECOND, 1007 * SECOND), (1007 * SECOND, 1007 * SECOND)])
    assert latency.missing_from(1007 * SECOND) == 1001 * SECOND
