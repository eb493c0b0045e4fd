"""What all living holders want together, and whether that is known for sure. Pure.

The absence of a want proves nothing after an outage: its holder may not have come back yet. So it counts only
once the wants could be read without interruption for WANT_TTL_MS: every living holder has renewed by then,
for even the longest lease is renewed that often.
"""

from collections.abc import Mapping
from typing import NamedTuple

from services.gateway.subscriptions.policy import WantsPolicy
from tickbus.protocol.wants import WANT_TTL_MS, Topic

_HOUR_MS = 3_600_000


class Wanted(NamedTuple):
    topics: dict[Topic, int]
    """Since when each is wanted, in ms; 0: since now."""
    rejected: dict[Topic, str]
    """What some holder may not want, and nobody else wants, and why."""


class _Holder(NamedTuple):
    topics: dict[Topic, int]
    """What it wants and may."""
    rejected: dict[Topic, str]


class WantBook:
    """The wants by holder."""

    def __init__(self, policy: WantsPolicy, kinds: tuple[str, ...]) -> None:
        """kinds: what the vendor has."""
        self.policy = policy
        self._kinds = kinds
        self._holders: dict[str, _Holder] = {}
        self._new: dict[str, tuple[int, int]] = {}
        """By holder: when an hour began for it, and how many topics it has wanted newly since."""
        self._readable_since = 0
        self._union: Wanted | None = None
        """As of the last change."""

    @property
    def holders(self) -> int:
        return len(self._holders)

    def interrupt(self) -> None:
        """The wants could not be read, or were lost."""
        self._readable_since = 0

    def read(self, now: int) -> None:
        """The wants could be read."""
        self._readable_since = self._readable_since or now

    def settled(self, now: int) -> bool:
        """Return whether what is not wanted now (ms) is really not wanted."""
        return 0 < self._readable_since <= now - WANT_TTL_MS

    def put(self, holder: str, wants: Mapping[Topic, int], now: int) -> None:
        """Replace what a holder wants, as far as the rules allow it.

        wants: since when it wants each, in ms, by its own clock. now: in ms.
        """
        rule = self.policy.rule_of(holder)
        before = self._holders.get(holder)
        kept = {} if before is None else before.topics
        topics: dict[Topic, int] = {}
        rejected: dict[Topic, str] = {}
        for topic, since in wants.items():
            if topic.kind not in self._kinds:
                why = f"this feed has no {topic.kind}s"
            elif rule is None:
                why = f"holder {holder} may not want anything (--wants)"
            elif not rule.allows(topic):
                why = f"holder {holder} may not want {topic.kind} {topic.symbol} (--wants)"
            elif len(topics) >= rule.most:
                why = f"holder {holder} may want at most {rule.most} (--wants)"
            elif topic not in kept and not self._is_new_allowed(holder, rule.new_per_hour, now):
                why = f"holder {holder} may want at most {rule.new_per_hour} new ones an hour (--wants)"
            else:
                topics[topic] = since
                continue
            rejected[topic] = why
        self._holders[holder] = _Holder(topics, rejected)
        self._union = None

    def _is_new_allowed(self, holder: str, most: int, now: int) -> bool:
        began, count = self._new.get(holder, (now, 0))
        if now - began >= _HOUR_MS:
            began, count = now, 0
        self._new[holder] = began, count + 1
        return count < most

    def forget(self, holder: str) -> None:
        """A holder's lease ended."""
        self._holders.pop(holder, None)
        self._union = None

    def forget_idle(self, now: int) -> None:
        """Forget the count of new topics of holders that are gone."""
        for holder, (began, _) in list(self._new.items()):
            if holder not in self._holders and now - began >= _HOUR_MS:
                del self._new[holder]

    def wanted(self) -> Wanted:
        """Return the union over all holders: the same object until something changes."""
        if self._union is None:
            self._union = self._unite()
        return self._union

    def _unite(self) -> Wanted:
        topics: dict[Topic, int] = {}
        rejected: dict[Topic, str] = {}
        for holder in self._holders.values():
            for topic, since in holder.topics.items():
                topics[topic] = min(topics.get(topic, since), since)
            rejected |= holder.rejected
        return Wanted(topics, {topic: why for topic, why in rejected.items() if topic not in topics})
