"""Receive times on the vendor's clock."""

from services.gateway.sequencing.latency import MinLatency

SECOND = 1_000_000_000


def test_clocks_are_equal_before_any_tick() -> None:
    latency = MinLatency()
    latency.measure([(0, 0)])
    assert (latency.missing_from(100), latency.missing_to(200)) == (100, 200)


def test_delayed_feed_shifts_both_ends() -> None:
    latency = MinLatency()
    latency.measure([(1000 * SECOND, 1900 * SECOND), (1001 * SECOND, 1901 * SECOND)])
    assert (latency.missing_from(1901 * SECOND), latency.missing_to(1950 * SECOND)) == (
        1001 * SECOND,
        1050 * SECOND,
    )


def test_stall_shifts_the_beginning_but_not_the_end() -> None:
    latency = MinLatency()
    latency.measure([(1000 * SECOND, 1000 * SECOND + 5)])
    # the gateway stalled for 6 s, read one old frame, and was replaced
    latency.measure([(1001 * SECOND, 1007 * SECOND), (999 * SECOND, 999 * SECOND + 5)])
    assert latency.missing_from(1007 * SECOND) == 1001 * SECOND
    assert latency.missing_to(1020 * SECOND) == 1020 * SECOND - 5


def test_quotes_without_vendor_time_are_ignored() -> None:
    latency = MinLatency()
    latency.measure([(1001 * SECOND, 1007 * SECOND), (1007 * SECOND, 1007 * SECOND)])
    assert latency.missing_from(1007 * SECOND) == 1001 * SECOND


def test_vendor_clock_ahead_of_ours_moves_no_beginning_behind_the_last_tick() -> None:
    latency = MinLatency()
    latency.measure([(1000 * SECOND + 33, 1000 * SECOND)])
    assert latency.observed == -33
    # a quote without a time of the vendor's has ours: nothing of its stream is later than its receipt
    assert latency.missing_from(1000 * SECOND) == 1000 * SECOND
    assert latency.missing_to(1010 * SECOND) == 1010 * SECOND + 33
