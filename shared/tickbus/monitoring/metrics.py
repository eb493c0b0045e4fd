"""Every metric of tickbus: name, kind, unit, labels, meaning. docs/metrics.md and the dashboards are held
against this list by a test.

`tickbus.monitoring.meters` makes the Prometheus objects.
Never a label per symbol: per-symbol truth is `tickbus status`.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    name: str
    """As it is exposed, `_total` included."""
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()


_LATENCY = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    60.0,
)

# feed side: the gateway
FEED_CONNECTED = Metric(
    "tickbus_feed_connected",
    "gauge",
    "bool",
    ("feed",),
    "1 while the upstream connection is open and subscribed",
)
FEED_LAST_MESSAGE = Metric(
    "tickbus_feed_last_message_timestamp_seconds",
    "gauge",
    "seconds",
    ("feed",),
    "when the last tick arrived; heartbeats do not count",
)
FEED_FRAMES = Metric(
    "tickbus_feed_frames_total",
    "counter",
    "frames",
    ("feed",),
    "frames received, heartbeats and answers included",
)
FEED_BYTES = Metric(
    "tickbus_feed_bytes_total", "counter", "bytes", ("feed",), "bytes received from the vendor"
)
FEED_RECONNECTS = Metric(
    "tickbus_feed_reconnects_total",
    "counter",
    "connections",
    ("feed", "reason"),
    "upstream connections that ended and were made again",
)
FEED_REJECTED = Metric(
    "tickbus_feed_rejected_total",
    "counter",
    "items",
    ("feed", "reason"),
    "frames or ticks that could not be read, or were for no symbol of ours",
)
FEED_IGNORED = Metric(
    "tickbus_feed_ignored_total",
    "counter",
    "frames",
    ("feed",),
    "well-formed frames of a type that carries no ticks for us",
)
FEED_DUPLICATES = Metric(
    "tickbus_feed_duplicates_total",
    "counter",
    "ticks",
    ("feed",),
    "ticks dropped because their vendor id had been seen",
)
FEED_SYMBOLS_WANTED = Metric(
    "tickbus_feed_symbols_wanted", "gauge", "symbols", ("feed",), "symbols subscribed"
)
FEED_SYMBOLS_SILENT = Metric(
    "tickbus_feed_symbols_silent", "gauge", "symbols", ("feed",), "symbols subscribed that never ticked"
)
TICKS_PUBLISHED = Metric(
    "tickbus_ticks_published_total",
    "counter",
    "ticks",
    ("feed", "kind"),
    "ticks stored in Redis and acknowledged, by kind trade or quote",
)
GAPS = Metric(
    "tickbus_gaps_total",
    "counter",
    "gaps",
    ("feed", "kind"),
    "Gap messages with repaired = false in the feed's streams, counted over restarts",
)
GAPS_REPAIRED = Metric(
    "tickbus_gaps_repaired_total",
    "counter",
    "gaps",
    ("feed",),
    "Gap messages with repaired = true, counted over restarts",
)
MISSING_TICKS = Metric(
    "tickbus_missing_ticks_total",
    "counter",
    "ticks",
    ("feed",),
    "ticks that the Gaps name, where they can be counted; over restarts",
)
PUBLISH = Metric(
    "tickbus_publish_seconds",
    "histogram",
    "seconds",
    (),
    "one transaction: sent until acknowledged",
    _LATENCY,
)
BATCH_TICKS = Metric(
    "tickbus_publish_batch_ticks",
    "histogram",
    "ticks",
    (),
    "entries in one transaction",
    (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000),
)
PUBLISH_RETRIES = Metric(
    "tickbus_publish_retries_total",
    "counter",
    "transactions",
    (),
    "transactions sent again because their outcome was unknown or refused",
)
RESENT_TICKS = Metric(
    "tickbus_resent_ticks_total",
    "counter",
    "ticks",
    (),
    "entries that Redis had acknowledged and lost, sent again from the replay ring",
)
SPILLED_TICKS = Metric(
    "tickbus_spilled_ticks_total",
    "counter",
    "ticks",
    (),
    "entries written to the spill because Redis took nothing",
)
SPILL_TICKS = Metric("tickbus_spill_ticks", "gauge", "ticks", (), "of the backlog, what lies on the disk")
SPILL_BYTES = Metric(
    "tickbus_spill_bytes", "gauge", "bytes", (), "the same in bytes; bounded by --spill-bytes"
)
BACKLOG_TICKS = Metric(
    "tickbus_backlog_ticks", "gauge", "ticks", (), "received and not yet acknowledged by Redis"
)
BACKLOG_BYTES = Metric(
    "tickbus_backlog_bytes", "gauge", "bytes", (), "the same in bytes; bounded by --backlog-bytes"
)
EVENT_TO_RECEIVE = Metric(
    "tickbus_event_to_receive_seconds",
    "histogram",
    "seconds",
    ("feed",),
    "vendor's time to ours, of one tick a read, 10,000 a scrape at most: its latency plus the clocks' difference",
    _LATENCY,
)
RECEIVE_TO_PUBLISH = Metric(
    "tickbus_receive_to_publish_seconds",
    "histogram",
    "seconds",
    ("feed",),
    "read from the socket until acknowledged by Redis, of the oldest and the newest tick of each transaction",
    _LATENCY,
)
EPOCH = Metric(
    "tickbus_epoch",
    "gauge",
    "epochs",
    ("owner",),
    "the epoch under which this process writes; of a replica the highest of its shards",
)
RETENTION_TRIMMED = Metric(
    "tickbus_retention_trimmed_total", "counter", "entries", (), "entries removed by the retention sweep"
)
RETENTION_BYTES = Metric(
    "tickbus_retention_bytes",
    "gauge",
    "bytes",
    (),
    "memory of this process's streams in Redis at the last sweep",
)

# consumer side: bars, recorder, users' services
CONSUMER_LAG_TICKS = Metric(
    "tickbus_consumer_lag_ticks",
    "gauge",
    "ticks",
    ("service",),
    "entries in the streams of the shards that this replica works, not committed, summed",
)
CONSUMER_LAG_SECONDS = Metric(
    "tickbus_consumer_lag_seconds",
    "gauge",
    "seconds",
    ("service",),
    "age of the oldest entry not committed; 0 if none",
)
CONSUMER_LOST = Metric(
    "tickbus_consumer_lost_ticks_total",
    "counter",
    "ticks",
    ("service",),
    "entries trimmed before the service read them",
)
CONSUMER_READ = Metric("tickbus_consumer_read_total", "counter", "entries", ("service",), "entries read")
CONSUMER_COMMITS = Metric(
    "tickbus_consumer_commits_total",
    "counter",
    "commits",
    ("service",),
    "commits of output and position together",
)
MEMBERS = Metric(
    "tickbus_members",
    "gauge",
    "processes",
    ("service",),
    "replicas of the service that this one sees alive, itself among them",
)
SHARDS_OWNED = Metric(
    "tickbus_shards_owned",
    "gauge",
    "shards",
    ("service",),
    "shards that this replica works; over all replicas: all shards",
)
REBALANCES = Metric(
    "tickbus_rebalances_total",
    "counter",
    "changes",
    ("service",),
    "times that this replica took shards over, gave some back or was replaced",
)
RETENTION_HEADROOM = Metric(
    "tickbus_retention_headroom_seconds",
    "gauge",
    "seconds",
    ("service",),
    "smallest time until retention takes an entry the service has not read",
)
BARS_EMITTED = Metric(
    "tickbus_bars_emitted_total", "counter", "bars", ("spec",), "bars emitted, revisions included"
)
BARS_REVISED = Metric("tickbus_bars_revised_total", "counter", "bars", ("spec",), "revisions among them")
BARS_IGNORED = Metric(
    "tickbus_bars_ignored_trades_total",
    "counter",
    "trades",
    ("reason",),
    "trades that move no bar: too_late, off_book, zero, cancelled, unreadable",
)
BARS_OPEN = Metric("tickbus_bars_open", "gauge", "bars", (), "bars open now")
RECORDER_ROWS = Metric(
    "tickbus_recorder_rows_total", "counter", "rows", ("kind",), "rows in files that a manifest names"
)
RECORDER_FILES = Metric(
    "tickbus_recorder_files_total", "counter", "files", ("kind",), "files that a manifest names"
)
RECORDER_BYTES = Metric("tickbus_recorder_bytes_total", "counter", "bytes", (), "bytes of these files")
RECORDER_ASIDE = Metric(
    "tickbus_recorder_aside_total",
    "counter",
    "messages",
    ("reason",),
    "messages that no row can hold, set aside, and unreadable ones, left out",
)
RECORDER_BLOCKED = Metric(
    "tickbus_recorder_blocked",
    "gauge",
    "bool",
    (),
    "1 while files cannot be written: disk full or folder not writable",
)
RECORDER_LAST_COMMIT = Metric(
    "tickbus_recorder_last_commit_timestamp_seconds",
    "gauge",
    "seconds",
    (),
    "when a manifest was last written",
)
RECORDER_FLUSH = Metric(
    "tickbus_recorder_flush_seconds",
    "histogram",
    "seconds",
    (),
    "one commit: rows to fsynced, named files",
    _LATENCY,
)

# every process
REDIS_UP = Metric("tickbus_redis_up", "gauge", "bool", (), "1 while the connection to Redis answers")
REDIS_RECONNECTS = Metric(
    "tickbus_redis_reconnects_total", "counter", "connections", (), "connections to Redis made again"
)
BUILD_INFO = Metric(
    "tickbus_build_info", "gauge", "info", ("version", "part"), "always 1; which version of which part runs"
)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
