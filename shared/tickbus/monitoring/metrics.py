"""Every metric of tickbus: name, kind, unit, labels, meaning. A test checks docs/metrics.md and the
dashboards against this list.

`tickbus.monitoring.meters` creates the Prometheus objects.
No metric has a label per symbol: `tickbus status` shows the values per symbol.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    name: str
    """As exposed, including `_total`."""
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

# feed side: gateway
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
    "time at which the last tick arrived; heartbeats do not count",
)
FEED_FRAMES = Metric(
    "tickbus_feed_frames_total",
    "counter",
    "frames",
    ("feed",),
    "frames received, including heartbeats and replies",
)
FEED_BYTES = Metric(
    "tickbus_feed_bytes_total", "counter", "bytes", ("feed",), "bytes received from the vendor"
)
FEED_RECONNECTS = Metric(
    "tickbus_feed_reconnects_total",
    "counter",
    "connections",
    ("feed", "reason"),
    "upstream connections that ended and were re-established",
)
FEED_REJECTED = Metric(
    "tickbus_feed_rejected_total",
    "counter",
    "items",
    ("feed", "reason"),
    "frames or ticks that could not be parsed, or were not for a subscribed symbol",
)
FEED_IGNORED = Metric(
    "tickbus_feed_ignored_total",
    "counter",
    "frames",
    ("feed",),
    "well-formed frames of a type that carries no ticks we use",
)
FEED_DUPLICATES = Metric(
    "tickbus_feed_duplicates_total",
    "counter",
    "ticks",
    ("feed",),
    "ticks dropped because their vendor id was already seen",
)
FEED_SYMBOLS_WANTED = Metric(
    "tickbus_feed_symbols_wanted", "gauge", "symbols", ("feed",), "subscribed symbols"
)
FEED_SYMBOLS_SILENT = Metric(
    "tickbus_feed_symbols_silent", "gauge", "symbols", ("feed",), "subscribed symbols that never ticked"
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
    "Gap messages with repaired = false in the feed's streams, cumulative across restarts",
)
GAPS_REPAIRED = Metric(
    "tickbus_gaps_repaired_total",
    "counter",
    "gaps",
    ("feed",),
    "Gap messages with repaired = true, cumulative across restarts",
)
MISSING_TICKS = Metric(
    "tickbus_missing_ticks_total",
    "counter",
    "ticks",
    ("feed",),
    "ticks that Gaps report missing, where they can be counted; cumulative across restarts",
)
PUBLISH = Metric(
    "tickbus_publish_seconds",
    "histogram",
    "seconds",
    (),
    "one transaction, from sent to acknowledged",
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
    "transactions resent because they were refused or their outcome was unknown",
)
RESENT_TICKS = Metric(
    "tickbus_resent_ticks_total",
    "counter",
    "ticks",
    (),
    "entries that Redis had acknowledged and lost, resent from the replay buffer",
)
SPILLED_TICKS = Metric(
    "tickbus_spilled_ticks_total",
    "counter",
    "ticks",
    (),
    "entries spilled to disk because Redis was not accepting writes",
)
SPILL_TICKS = Metric("tickbus_spill_ticks", "gauge", "ticks", (), "the part of the backlog that is on disk")
SPILL_BYTES = Metric(
    "tickbus_spill_bytes", "gauge", "bytes", (), "the same in bytes; limited by --spill-bytes"
)
BACKLOG_TICKS = Metric(
    "tickbus_backlog_ticks", "gauge", "ticks", (), "ticks received and not yet acknowledged by Redis"
)
BACKLOG_BYTES = Metric(
    "tickbus_backlog_bytes", "gauge", "bytes", (), "the same in bytes; limited by --backlog-bytes"
)
EVENT_TO_RECEIVE = Metric(
    "tickbus_event_to_receive_seconds",
    "histogram",
    "seconds",
    ("feed",),
    "vendor's time to ours: latency plus clock offset; of one tick per read, at most 10,000 per scrape",
    _LATENCY,
)
RECEIVE_TO_PUBLISH = Metric(
    "tickbus_receive_to_publish_seconds",
    "histogram",
    "seconds",
    ("feed",),
    "from socket read to acknowledgement by Redis, of the oldest and the newest tick of each transaction",
    _LATENCY,
)
EPOCH = Metric(
    "tickbus_epoch",
    "gauge",
    "epochs",
    ("owner",),
    "the epoch under which this process writes; for a replica, the highest of its shards",
)
RETENTION_TRIMMED = Metric(
    "tickbus_retention_trimmed_total", "counter", "entries", (), "entries removed by the retention sweep"
)
RETENTION_BYTES = Metric(
    "tickbus_retention_bytes",
    "gauge",
    "bytes",
    (),
    "memory that this process's streams take in Redis, as of the last sweep",
)

# consumer side: bars, recorder, users' services
CONSUMER_LAG_TICKS = Metric(
    "tickbus_consumer_lag_ticks",
    "gauge",
    "ticks",
    ("service",),
    "uncommitted entries in the streams of the shards that this replica owns, summed",
)
CONSUMER_LAG_SECONDS = Metric(
    "tickbus_consumer_lag_seconds",
    "gauge",
    "seconds",
    ("service",),
    "age of the oldest uncommitted entry; 0 if none",
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
    "replicas of the service that this one sees alive, including itself",
)
SHARDS_OWNED = Metric(
    "tickbus_shards_owned",
    "gauge",
    "shards",
    ("service",),
    "shards that this replica owns; summed over all replicas: all shards",
)
REBALANCES = Metric(
    "tickbus_rebalances_total",
    "counter",
    "changes",
    ("service",),
    "times that this replica took over, released or lost shards",
)
RETENTION_HEADROOM = Metric(
    "tickbus_retention_headroom_seconds",
    "gauge",
    "seconds",
    ("service",),
    "shortest time until retention removes an entry the service has not read",
)
BARS_EMITTED = Metric(
    "tickbus_bars_emitted_total", "counter", "bars", ("spec",), "bars emitted, revisions included"
)
BARS_REVISED = Metric(
    "tickbus_bars_revised_total", "counter", "bars", ("spec",), "revisions among the emitted bars"
)
BARS_IGNORED = Metric(
    "tickbus_bars_ignored_trades_total",
    "counter",
    "trades",
    ("reason",),
    "trades that change no bar: too_late, off_book, zero, cancelled, unreadable",
)
BARS_OPEN = Metric("tickbus_bars_open", "gauge", "bars", (), "bars open now")
RECORDER_ROWS = Metric(
    "tickbus_recorder_rows_total", "counter", "rows", ("kind",), "rows in files listed in a manifest"
)
RECORDER_FILES = Metric(
    "tickbus_recorder_files_total", "counter", "files", ("kind",), "files listed in a manifest"
)
RECORDER_BYTES = Metric("tickbus_recorder_bytes_total", "counter", "bytes", (), "bytes of these files")
RECORDER_ASIDE = Metric(
    "tickbus_recorder_aside_total",
    "counter",
    "messages",
    ("reason",),
    "messages that no row can represent and unreadable ones, quarantined in `_aside`",
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
    "time at which a manifest was last written",
)
RECORDER_FLUSH = Metric(
    "tickbus_recorder_flush_seconds",
    "histogram",
    "seconds",
    (),
    "one commit: from rows to fsynced and renamed files",
    _LATENCY,
)

CONSUMER_FOREIGN = Metric(
    "tickbus_consumer_foreign_total",
    "counter",
    "items",
    ("service", "what"),
    "entries, bells and heads that some other program wrote and that were skipped",
)

# every process
QUARANTINED_KEYS = Metric(
    "tickbus_quarantined_keys",
    "gauge",
    "keys",
    (),
    "streams and hashes that are not read or written because some other program wrote to them",
)
HELD_ENTRIES = Metric(
    "tickbus_held_entries", "gauge", "entries", (), "entries held in memory until such a key is mended"
)
REDIS_UP = Metric("tickbus_redis_up", "gauge", "bool", (), "1 while the connection to Redis answers")
REDIS_RECONNECTS = Metric(
    "tickbus_redis_reconnects_total", "counter", "connections", (), "connections to Redis re-established"
)
BUILD_INFO = Metric(
    "tickbus_build_info",
    "gauge",
    "info",
    ("version", "part"),
    "always 1; which version of which part is running",
)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
