"""Brings what one connection is subscribed to, to what is wanted, request by request. Pure.

One change is under way at a time; the next is decided when all its requests are answered, so whatever is
wanted meanwhile becomes one change. A refusal never costs a symbol that was acknowledged before: vendors
whose lists replace each other get the acknowledged list again, and the new symbols are tried by halves until
those at fault are known. docs/subscriptions.md has the rules.
"""

from collections import deque
from collections.abc import Collection, Sequence

from services.vendors.feed import Feed, Refused, Request, Topic
from tickbus.units import SECOND

ANSWER_SECONDS = 20.0
"""A request without an answer for this long is sent again."""
_MIN_WAIT = 1.0
"""After a refusal that is not about symbols, or none at all."""
_UNSURE_SECONDS = 5.0
"""Without acknowledgements: an error this soon after a request answers it."""


class Reconciler:
    """What one connection has subscribed to, and the next request. Times are seconds of any clock."""

    def __init__(self, feed: Feed, fixed: Collection[Topic]) -> None:
        """fixed: topics whose refusal ends the connection."""
        self._feed = feed
        self._fixed = frozenset(fixed)
        self.acknowledged: dict[Topic, None] = {}
        self.unanswered = 0
        """Requests that the vendor did not answer in time, since it last answered one."""
        self._queue: deque[Request] = deque()
        self._in_flight: deque[tuple[Request, float]] = deque()
        self._adds: tuple[Topic, ...] = ()
        """What the change under way adds."""
        self._uncertain: set[Topic] = set()
        """Topics of requests that were never answered: the vendor may have done what they say, or not."""
        self._trials: deque[list[Topic]] = deque()
        """Topics of refused requests, in the parts in which they are tried."""
        self._began = False
        self._restore = False
        self._not_before = 0.0

    @property
    def idle(self) -> bool:
        """Whether no change is under way."""
        awaited = self._in_flight if self._feed.acks_subscribe else ()
        return not (self._queue or awaited or self._restore)

    @property
    def wait_until(self) -> float:
        """When there may be a request again without any news; 0: that is not known."""
        return self._in_flight[0][1] + ANSWER_SECONDS if self._in_flight else self._not_before

    @property
    def established(self) -> bool:
        """Whether the first change is through, and what the connection cannot do without is subscribed."""
        return self._began and self.idle and self._fixed <= self.acknowledged.keys()

    def next(self, target: Sequence[Topic], now: float) -> Request | None:
        """Return the request to send now; None: there is none, or it is not its time."""
        if self._in_flight and self._feed.acks_subscribe:
            if now - self._in_flight[0][1] >= ANSWER_SECONDS:
                self._give_up()
                self.unanswered += 1
                self._not_before = now + _MIN_WAIT
            elif not self._queue:
                return None
        if not self._queue:
            if now < self._not_before:
                return None
            self._queue.extend(self._change(target))
        return self._queue[0] if self._queue else None

    def _change(self, target: Sequence[Topic]) -> list[Request]:
        if self._restore:
            self._restore, self._adds = False, ()
            return [
                request._replace(adds=(), drops=())
                for request in self._feed.change(tuple(self.acknowledged), ())
            ]
        wanted = self._wanted(target)
        self._began = True
        # what is uncertain is asked for again, or dropped again
        held = self.acknowledged | dict.fromkeys(sorted(self._uncertain - wanted.keys()))
        if wanted.keys() == held.keys():
            return []
        requests = self._feed.change(tuple(wanted), tuple(held))
        self._adds = tuple(topic for topic in wanted if topic not in held)
        if not requests:  # the vendor cannot be told: what it still sends is ignored
            self.acknowledged = dict.fromkeys(wanted)
            self._uncertain.clear()
        return requests

    def _give_up(self) -> None:
        """The vendor does not answer: nobody knows what it did."""
        for request, _ in self._in_flight:
            self._uncertain.update(request.adds, request.drops)
            for topic in request.drops:
                self.acknowledged.pop(topic, None)
        self._in_flight.clear()
        self._queue.clear()

    def _wanted(self, target: Sequence[Topic]) -> dict[Topic, None]:
        """Return what to subscribe to next: while some topics are tried, besides what is acknowledged only
        the first part of these."""
        if self._trials:
            wanted = frozenset(target)
            kept = [[topic for topic in part if topic in wanted] for part in self._trials]
            self._trials = deque(part for part in kept if part)
        if not self._trials:
            return dict.fromkeys(target)
        allowed = self._fixed | self.acknowledged.keys()
        if all(topic in self.acknowledged or topic not in self._fixed for topic in target):
            allowed |= frozenset(self._trials[0])
        return dict.fromkeys(topic for topic in target if topic in allowed)

    def sent(self, request: Request, now: float) -> list[Topic]:
        """Note that the request of `next` was sent. Return the topics that are subscribed to thereby."""
        self._queue.popleft()
        if self._feed.acks_subscribe:
            self._in_flight.append((request, now))
            return []
        self._in_flight = deque([(request, now)])  # an error may still come
        subscribed = self._apply(request)
        self._finish()
        return subscribed

    def acknowledge(self, id: int | None) -> list[Topic]:
        """Note an acknowledgement. Return the topics that are subscribed to thereby."""
        request = self._take(id)
        if request is None:
            return []
        self.unanswered = 0
        subscribed = self._apply(request)
        self._finish()
        return subscribed

    def _apply(self, request: Request) -> list[Topic]:
        self._uncertain.difference_update(request.adds, request.drops)
        for topic in request.drops:
            self.acknowledged.pop(topic, None)
        new = [topic for topic in request.adds if topic not in self.acknowledged]
        self.acknowledged |= dict.fromkeys(new)
        return new

    def _finish(self) -> None:
        """A part that was tried is done once all of it is acknowledged."""
        if self._trials and all(topic in self.acknowledged for topic in self._trials[0]):
            self._trials.popleft()

    def refuse(self, refused: Refused, now: float) -> list[Topic] | None:
        """Note a refusal. Return the topics that it proves to be at fault; None if it is for the caller: it
        answers no request of ours, or concerns what this connection cannot do without."""
        request = self._take(refused.request, unsure_since=now - _UNSURE_SECONDS)
        if request is None:
            return None
        adds = [topic for topic in request.adds or self._adds if topic in self._adds]
        if not self._feed.acks_subscribe:  # taken for subscribed when it was sent
            for topic in adds:
                self.acknowledged.pop(topic, None)
        suspects = [topic for topic in adds if topic not in self._fixed and topic not in self.acknowledged]
        certain = [topic for topic in adds if topic in self._fixed and topic not in self.acknowledged]
        self.unanswered = 0
        if not refused.symbols:
            if certain or not self.acknowledged:
                return None
            self._queue.clear()
            self._not_before = now + max(refused.wait / SECOND, _MIN_WAIT)
            return []
        if request.drops and not request.adds:  # what the vendor still sends of these is ignored
            self._apply(request)
            return []
        if not suspects:
            return None
        self._queue.clear()
        self._restore = self._feed.subscribe_replaces and bool(self.acknowledged)
        if self._trials and set(suspects) >= set(self._trials[0]):
            self._trials.popleft()
        if len(suspects) == 1 and not certain:
            return suspects
        middle = (len(suspects) + 1) // 2
        self._trials.extendleft(part for part in (suspects[middle:], suspects[:middle]) if part)
        return []

    def _take(self, id: int | None, unsure_since: float = 0.0) -> Request | None:
        """Return the request that an answer with this id is for; without an id, the oldest."""
        if not self._in_flight:
            return None
        if not self._feed.acks_subscribe:
            request, sent = self._in_flight.pop()
            return request if sent >= unsure_since else None
        if id is None:
            return self._in_flight.popleft()[0]
        for at, (request, _) in enumerate(self._in_flight):
            if request.id == id:
                del self._in_flight[at]
                return request
            if request.id is None:
                break
        return None
