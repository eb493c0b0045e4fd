"""The recorder's counters and gauges as metrics."""

from services.archive.schema import KINDS
from services.recorder.recorder import Recorder
from tickbus.monitoring import metrics as m
from tickbus.monitoring.meters import Meters

_QUARANTINED = ("decimal", "integer", "text", "unreadable")


def expose(meters: Meters, recorder: Recorder) -> None:
    follow = meters.follow
    meters.follow_each(m.RECORDER_ROWS, lambda: recorder.rows, KINDS)
    meters.follow_each(m.RECORDER_FILES, lambda: recorder.files, KINDS)
    meters.follow_each(m.RECORDER_ASIDE, lambda: recorder.quarantined, _QUARANTINED)
    follow(m.RECORDER_SPLIT, lambda: recorder.split)
    follow(m.RECORDER_BYTES, lambda: recorder.bytes)
    follow(m.RECORDER_BLOCKED, lambda: bool(recorder.stores.blocked))
    follow(m.RECORDER_BLOCKED_SHARDS, lambda: len(recorder.stores.blocked))
    follow(m.RECORDER_MISSING_FILES, lambda: recorder.stores.missing_files)
    follow(m.RECORDER_LAST_COMMIT, lambda: recorder.last_commit)
    flush = meters.histogram(m.RECORDER_FLUSH)

    def refresh() -> None:
        flushes, recorder.flushes = recorder.flushes, []
        for seconds in flushes:
            flush.observe(seconds)

    meters.before_scrape(refresh)
