"""When the vendor acknowledged the subscription: once per stream, in its head, before its first entry."""

from gateway.sequencing.test_sequencer import QUOTES, START, TRADES, Bench

from tickbus.protocol.wants import Topic


def test_first_acknowledgement_is_kept_over_reconnects_and_restarts() -> None:
    bench = Bench()
    bench.resumed()
    first = bench.recv
    assert first > START
    bench.outage()
    bench.resumed()
    bench.send(5)
    bench.store()
    assert bench.heads[TRADES.name].subscribed == first
    bench.start()
    bench.resumed()
    bench.send(6)
    bench.store()
    assert bench.heads[TRADES.name].subscribed == first


def test_stream_that_ticked_before_it_was_acknowledged_stays_unknown() -> None:
    bench = Bench()
    bench.send(5)
    bench.resumed()
    bench.send(6)
    bench.store()
    assert bench.heads[TRADES.name].subscribed == 0


def test_each_topic_has_its_own_acknowledgement() -> None:
    bench = Bench()
    bench.sequencer.resumed(bench.now(), [Topic("quote", "A")])
    bench.quote()
    bench.send(5)
    bench.store()
    assert (bench.heads[QUOTES.name].subscribed > 0, bench.heads[TRADES.name].subscribed) == (True, 0)
