"""The results of the retention sweep, as metrics."""

from tickbus.monitoring import metrics as m
from tickbus.monitoring.meters import Meters
from tickbus.writer.retention import Sweeper


def expose_sweeps(meters: Meters, sweeper: Sweeper) -> None:
    meters.follow(m.RETENTION_TRIMMED, lambda: sweeper.total.removed)
    meters.follow(m.RETENTION_BYTES, lambda: sweeper.total.bytes)
