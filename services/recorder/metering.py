"""The recorder's integers -> its metrics, at each scrape."""

from services.recorder.recorder import Recorder
from tickbus import metrics as m
from tickbus.consumer import Consumer
from tickbus.consumer_metrics import ConsumerMeters
from tickbus.metrics import Meters

_KINDS = ("trade", "quote", "bar", "gap")
_ASIDE = ("decimal", "integer", "unreadable")


class RecorderMeters:
    def __init__(self, meters: Meters, consumer: Consumer, recorder: Recorder) -> None:
        self._recorder = recorder
        self._rows = {kind: meters.total(m.RECORDER_ROWS, kind) for kind in _KINDS}
        self._files = {kind: meters.total(m.RECORDER_FILES, kind) for kind in _KINDS}
        self._aside = {reason: meters.total(m.RECORDER_ASIDE, reason) for reason in _ASIDE}
        self._bytes = meters.total(m.RECORDER_BYTES)
        self._blocked = meters.gauge(m.RECORDER_BLOCKED)
        self._last_commit = meters.gauge(m.RECORDER_LAST_COMMIT)
        self._flush = meters.histogram(m.RECORDER_FLUSH)
        ConsumerMeters(meters, consumer)
        meters.before_scrape(self.refresh)

    def refresh(self) -> None:
        recorder = self._recorder
        for kind in _KINDS:
            self._rows[kind].bring_to(recorder.rows[kind])
            self._files[kind].bring_to(recorder.files[kind])
        for reason, total in self._aside.items():
            total.bring_to(recorder.aside[reason])
        self._bytes.bring_to(recorder.bytes)
        self._blocked.set(recorder.blocked)
        self._last_commit.set(recorder.last_commit)
        flushes, recorder.flushes = recorder.flushes, []
        for seconds in flushes:
            self._flush.observe(seconds)
