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
    "frames of a type that the vendor documents and that carries no ticks we use; keepalives; ticks of what "
    "is not subscribed to, or not any more",
)
FEED_UNKNOWN = Metric(
    "tickbus_feed_unknown_total",
    "counter",
    "frames",
    ("feed",),
    "frames that nobody understands and that cannot hold ticks as far as can be seen; the first are logged",
)
FEED_VENDOR_ERRORS = Metric(
    "tickbus_feed_vendor_errors_total",
    "counter",
    "frames",
    ("feed",),
    "errors that the vendor reported without ending the connection; the first are logged",
)
FEED_BAD_TIMES = Metric(
    "tickbus_feed_bad_times_total",
    "counter",
    "ticks",
    ("feed",),
    "ticks whose time by the vendor is absent or implausible: ts_event is ts_recv, flagged bad_time",
)
FEED_DUPLICATES = Metric(
    "tickbus_feed_duplicates_total",
    "counter",
    "ticks",
    ("feed",),
    "ticks dropped because they are stored already: their vendor id was seen before, with the same values",
)
FEED_DOUBTFUL_IDS = Metric(
    "tickbus_feed_doubtful_ids_total",
    "counter",
    "ticks",
    ("feed",),
    "trades stored with the flag doubtful_id: their vendor id is that of another trade, or far off",
)
FEED_HELD = Metric(
    "tickbus_feed_held_total",
    "counter",
    "ticks",
    ("feed",),
    "trades held for up to a second because their vendor id fell or was far ahead",
)
FEED_SYMBOLS_WANTED = Metric(
    "tickbus_feed_symbols_wanted", "gauge", "symbols", ("feed",), "subscribed symbols"
)
FEED_SYMBOLS_SILENT = Metric(
    "tickbus_feed_symbols_silent", "gauge", "symbols", ("feed",), "subscribed symbols that never ticked"
)
FEED_SUBSCRIPTIONS = Metric(
    "tickbus_feed_subscriptions",
    "gauge",
    "topics",
    ("feed", "state"),
    "what is asked of the vendor, by state: active, pending, refused, lingering",
)
FEED_WANT_HOLDERS = Metric(
    "tickbus_feed_want_holders", "gauge", "holders", ("feed",), "apps and relays that want symbols"
)
FEED_IDLE = Metric(
    "tickbus_feed_idle",
    "gauge",
    "bool",
    ("feed",),
    "1 while there is nothing to subscribe to, and so no upstream connection",
)
FEED_STANDBY_DIFFERS = Metric(
    "tickbus_feed_standby_differs",
    "gauge",
    "bool",
    ("feed",),
    "1 while this gateway stands by for one that has other symbols: a takeover would change the subscription",
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
    "ticks that Gaps report missing, where they can be counted, less those that never existed; "
    "cumulative across restarts",
)
HOLES_FORGOTTEN = Metric(
    "tickbus_holes_forgotten_total",
    "counter",
    "holes",
    ("feed",),
    "reported holes that are no longer known by their ids, because a stream had more than 256; cumulative "
    "across restarts",
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
SIGNALS_EMITTED = Metric(
    "tickbus_signals_emitted_total", "counter", "signals", ("name", "state"),
    "signals emitted; state: indicator, start, end",
)  # fmt: skip
SIGNALS_IGNORED = Metric(
    "tickbus_signals_ignored_ticks_total", "counter", "ticks", ("reason",),
    "trades and quotes that touch no signal: late, backfilled, off_book, cancelled, corrected, future_time, "
    "bad_time, zero, one_sided, locked, crossed, unreadable",
)  # fmt: skip
SIGNALS_UNDECIDED = Metric(
    "tickbus_signals_undecided", "gauge", "evaluations", ("reason",),
    "evaluations of the owned streams that decided nothing: flat (all values of the window are equal), "
    "suppressed (within a cool-down)",
)  # fmt: skip
SIGNALS_EPISODES = Metric("tickbus_signals_episodes", "gauge", "episodes", (), "episodes open now")
SIGNALS_PARAMETERS = Metric(
    "tickbus_signals_parameters", "gauge", "number", (),
    "number of the parameters in force; 0: the built-in ones",
)  # fmt: skip
SIGNALS_STATE_BYTES = Metric(
    "tickbus_signals_state_bytes_total", "counter", "bytes", (), "state written to Redis"
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
BARS_STREAMS = Metric(
    "tickbus_bars_streams",
    "gauge",
    "streams",
    ("feed",),
    "trade streams of the feed on the bus; 0: none, or only quotes, so it makes no bars",
)
BARS_CLOCK_AHEAD = Metric(
    "tickbus_bars_clock_ahead_streams",
    "gauge",
    "streams",
    ("feed",),
    "owned trade streams whose vendor's clock is ahead: time bars close by our clock, or not yet",
)
RECORDER_ROWS = Metric(
    "tickbus_recorder_rows_total", "counter", "rows", ("kind",), "rows in files listed in a manifest"
)
RECORDER_FILES = Metric(
    "tickbus_recorder_files_total", "counter", "files", ("kind",), "files listed in a manifest"
)
RECORDER_BYTES = Metric("tickbus_recorder_bytes_total", "counter", "bytes", (), "bytes of these files")
RECORDER_SPLIT = Metric(
    "tickbus_recorder_split_commits_total",
    "counter",
    "commits",
    (),
    "commits that left rows to the next one: they were of more than 16 days (wrong times, or a replay)",
)
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
    "1 while the files of a shard cannot be read or written: disk full, no access, damaged manifest",
)
RECORDER_BLOCKED_SHARDS = Metric(
    "tickbus_recorder_blocked_shards",
    "gauge",
    "shards",
    (),
    "owned shards that cannot be recorded for such a reason; their entries wait on the bus",
)
RECORDER_MISSING_FILES = Metric(
    "tickbus_recorder_missing_files_total",
    "counter",
    "files",
    (),
    "files of a newest commit that were gone when the recorder took the shard over: pruned, or lost",
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

# notify
NOTIFY_SENT = Metric(
    "tickbus_notify_sent_total",
    "counter",
    "notifications",
    ("service", "kind"),
    "what the receiver took, by kind: alert, trimmed (entries are missing), summary (of alerts too old to be "
    "sent one by one)",
)
NOTIFY_RETRIES = Metric(
    "tickbus_notify_retries_total",
    "counter",
    "attempts",
    ("service", "reason"),
    "failed attempts that are repeated: connect, timeout, status (5xx, 408, 425), rate_limit (429), apprise",
)
NOTIFY_DEAD_LETTERS = Metric(
    "tickbus_notify_dead_letters_total",
    "counter",
    "notifications",
    ("service", "reason"),
    "notifications given up and stored as dead letters: refused (4xx), redirect (3xx), expired (retried for "
    "too long), unreadable (an entry of a newer version)",
)
NOTIFY_SKIPPED = Metric(
    "tickbus_notify_skipped_total",
    "counter",
    "entries",
    ("service", "reason"),
    "entries that are not sent: indicator, filter (not for this receiver), gap",
)
NOTIFY_WAITING = Metric(
    "tickbus_notify_waiting",
    "gauge",
    "notifications",
    ("service",),
    "notifications that wait in memory; more may wait on the bus, see tickbus_consumer_lag_ticks",
)
NOTIFY_OLDEST = Metric(
    "tickbus_notify_oldest_seconds",
    "gauge",
    "seconds",
    ("service",),
    "age of the oldest alert that waits, by bus time; 0 if none does",
)
NOTIFY_FAILING = Metric(
    "tickbus_notify_failing",
    "gauge",
    "bool",
    ("service",),
    "1 while the last attempt of at least one stream failed and is to be repeated",
)

# relay
RELAY_CLIENTS = Metric("tickbus_relay_clients", "gauge", "connections", (), "WebSocket clients now")
RELAY_SUBSCRIPTIONS = Metric(
    "tickbus_relay_subscriptions", "gauge", "subscriptions", ("policy",), "subscriptions now, by policy"
)
RELAY_WANTS = Metric(
    "tickbus_relay_wants",
    "gauge",
    "topics",
    ("state",),
    "what clients want of gateways, by state: active, pending, refused, lingering, unknown (no answer)",
)
RELAY_STREAMS = Metric("tickbus_relay_streams", "gauge", "streams", (), "streams that clients read now")
RELAY_ENTRIES = Metric(
    "tickbus_relay_entries_total", "counter", "entries", (), "entries read from the bus for clients"
)
RELAY_INVALID = Metric(
    "tickbus_relay_invalid_entries_total",
    "counter",
    "entries",
    (),
    "entries that are no messages of this version: not delivered",
)
RELAY_HISTORY = Metric(
    "tickbus_relay_history_entries_total",
    "counter",
    "entries",
    (),
    "entries of history sent to clients",
)
RELAY_HISTORY_PAGES = Metric(
    "tickbus_relay_history_pages_total", "counter", "pages", (), "pages of history sent to clients"
)
RELAY_ELEMENTS = Metric(
    "tickbus_relay_elements_total", "counter", "elements", ("policy",), "elements sent to clients"
)
RELAY_DROPPED = Metric(
    "tickbus_relay_dropped_total",
    "counter",
    "elements",
    ("policy",),
    "elements that clients did not get because they were too slow; they are told how many",
)
RELAY_CONFLATED = Metric(
    "tickbus_relay_conflated_total",
    "counter",
    "beats",
    ("policy",),
    "beats that were merged into a later one because the client had not taken the one before",
)
RELAY_DELIVERY = Metric(
    "tickbus_relay_delivery_seconds",
    "histogram",
    "seconds",
    ("policy",),
    "bus time from the ms of the stream ID until the bytes were handed to the sockets, of the oldest entry "
    "of each round (lossless: also of drop) or the newest of each beat (conflate)",
    _LATENCY,
)
RELAY_IN_FLIGHT = Metric(
    "tickbus_relay_in_flight_bytes",
    "gauge",
    "bytes",
    ("policy",),
    "bytes on their way to clients, those in the kernel not counted; mixed: of clients with several "
    "policies, or without a subscription",
)
RELAY_RING = Metric(
    "tickbus_relay_ring_bytes", "gauge", "bytes", (), "newest entries kept for clients that catch up"
)
RELAY_REFUSED = Metric(
    "tickbus_relay_refused_total",
    "counter",
    "requests",
    ("reason",),
    "requests refused before a WebSocket was open: address, bus, handshake (none came), header, host, "
    "method, origin, path, token, total, unauthorized, vendor",
)
RELAY_DIALECT_CLIENTS = Metric(
    "tickbus_relay_dialect_clients",
    "gauge",
    "connections",
    ("vendor",),
    "clients that speak a vendor's protocol",
)
RELAY_UNSAID = Metric(
    "tickbus_relay_unsaid_total",
    "counter",
    "entries",
    ("reason",),
    "entries that a vendor's protocol cannot say, and its clients do not get: gap, late",
)
RELAY_CLOSED = Metric(
    "tickbus_relay_closed_total",
    "counter",
    "connections",
    ("code",),
    "connections that ended, by close code: 1000 and 1001 by the client, 1006 without one; other: the codes "
    "of vendors",
)
RELAY_HTTP = Metric(
    "tickbus_relay_http_responses_total",
    "counter",
    "responses",
    ("status",),
    "answers to plain HTTP, by status",
)
RELAY_REQUEST_ERRORS = Metric(
    "tickbus_relay_request_errors_total",
    "counter",
    "requests",
    (),
    "requests on /v1 that were answered with an error",
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
REDIS_REFUSES = Metric(
    "tickbus_redis_refuses_writes",
    "gauge",
    "bool",
    ("error",),
    "1 while Redis answers and rejects writes, by the first word of its error: MISCONF, OOM, READONLY, ...",
)
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
