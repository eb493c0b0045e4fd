from services.bars.feeds import FeedStreams

QUOTES = ["quote:slow:A", "quote:slow:B"]


def test_feed_of_quotes_is_reported_once_and_when_it_has_trades() -> None:
    feeds = FeedStreams()
    assert (feeds.fault, feeds.trades) == ("", {}), "nothing is known before the first look"
    assert feeds.look([]) == ([], [])
    assert feeds.look(QUOTES) == (["slow"], [])
    assert (feeds.trades, feeds.only_quotes) == ({"slow": 0}, {"slow": 2})
    assert feeds.fault == "no bars: slow: only quotes on the bus, no trades"
    assert feeds.look(QUOTES) == ([], [])
    assert feeds.look([*QUOTES, "trade:slow:A"]) == ([], ["slow"])
    assert (feeds.trades, feeds.fault) == ({"slow": 1}, "")


def test_another_feed_with_trades_is_something_to_build_bars_from() -> None:
    feeds = FeedStreams()
    assert feeds.look([*QUOTES, "trade:fast:A", "bar:time:1s:fast:A"]) == (["slow"], [])
    assert (feeds.trades, feeds.fault) == ({"fast": 1, "slow": 0}, "")


def test_only_configured_feeds_count() -> None:
    feeds = FeedStreams(["slow", "later"])
    assert feeds.look([*QUOTES, "trade:fast:A"]) == (["slow"], [])
    assert feeds.trades == {"later": 0, "slow": 0}
    assert feeds.fault.startswith("no bars: slow")
    assert FeedStreams(["fast"]).look([*QUOTES, "trade:fast:A"]) == ([], [])


def test_bus_that_was_flushed_is_forgotten() -> None:
    feeds = FeedStreams()
    feeds.look(QUOTES)
    assert feeds.look([]) == ([], [])
    assert (feeds.trades, feeds.fault) == ({}, "")
    assert feeds.look(QUOTES) == (["slow"], [])
