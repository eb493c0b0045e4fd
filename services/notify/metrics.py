"""The notify service's counters and gauges as metrics."""

from services.notify.notifications import KINDS
from services.notify.outcomes import DEAD_REASONS, RETRY_REASONS
from services.notify.service import NotifyService
from tickbus.monitoring import metrics as m
from tickbus.monitoring.meters import Meters

_SKIPPED = ("indicator", "filter", "gap")


def expose(meters: Meters, notify: NotifyService, service: str) -> None:
    condition = notify.condition
    meters.follow_each(m.NOTIFY_SENT, lambda: condition.sent, KINDS, service)
    meters.follow_each(m.NOTIFY_RETRIES, lambda: condition.retried, RETRY_REASONS, service)
    meters.follow_each(m.NOTIFY_DEAD_LETTERS, lambda: condition.dead, DEAD_REASONS, service)
    meters.follow_each(m.NOTIFY_SKIPPED, lambda: notify.skipped, _SKIPPED, service)
    meters.follow(m.NOTIFY_WAITING, lambda: notify.waiting, service)
    meters.follow(m.NOTIFY_OLDEST, lambda: notify.oldest_seconds, service)
    meters.follow(m.NOTIFY_FAILING, lambda: condition.is_failing, service)
