"""Delivers alerts: one stream's in order, several streams' at once, each at least once and under one key.

The position of a stream moves after a 2xx or a stored dead letter, one alert at a time. So a crash, a kill,
or a shard that changes its owner repeats at most the alert in flight of each stream.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

from services.notify.commits import Commits
from services.notify.condition import Condition
from services.notify.dead_letters import DeadLetters
from services.notify.notifications import Notification, Summary, encode_notification, key_of
from services.notify.outcomes import Outcome, Verdict, backoff
from services.notify.receiver import Receiver
from services.notify.sending import Sender
from services.notify.stream_queue import Fixed, StreamQueue, Unreadable
from tickbus.consumer.consumer import ShardConsumer
from tickbus.errors import RedisError, WireError
from tickbus.protocol.codec import read_head
from tickbus.protocol.names import Stream, StreamId
from tickbus.reader.reads import Read
from tickbus.redis.link import ReplyError
from tickbus.units import SECOND

log = logging.getLogger("tickbus.notify")

_MOST_OF_STREAM = 256
"""Alerts of one stream that wait in memory."""
_MOST_BYTES = 16 << 20
"""Of all streams; beyond it each still has the one that is next."""
_LAST_SECONDS = 2.0
"""How long what is in flight may take when streams are given up, or the service ends."""
_SETTLE_SECONDS = 5.0
"""How long a summary waits at most for the entries that belong to it."""


class NotifyService:
    def __init__(
        self,
        consumer: ShardConsumer,
        receiver: Receiver,
        sender: Sender,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`monotonic`: seconds. `chance`: from 0 to 1, for the jitter."""
        self._consumer = consumer
        self._receiver = receiver
        self._sender = sender
        self._monotonic = monotonic
        self._chance = chance
        self.condition = Condition(receiver, monotonic)
        self._commits = Commits(consumer)
        self._dead_letters = DeadLetters(consumer)
        self._queues: dict[Stream, StreamQueue] = {}
        self._working: dict[Stream, asyncio.Task[None]] = {}
        self._sending: set[Stream] = set()
        """Streams with a request in flight, or its result not stored yet."""
        self._ending: set[Stream] = set()
        """Streams that begin nothing new, because they are given up."""
        self._slots = asyncio.Semaphore(receiver.concurrency)
        self._paused_until = 0.0
        """Until then the receiver wants no request."""
        self._bytes = 0
        self._news = asyncio.Event()
        """Set, and replaced, whenever entries were taken."""
        self._group: asyncio.TaskGroup
        self._gone: Counter[str] = Counter()
        """What streams skipped that are not owned any more."""

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as self._group:
                committing = self._group.create_task(self._commits.run())
                try:
                    await self._take_batches()
                except asyncio.CancelledError:
                    await self._finish(list(self._queues))
                    raise
                finally:
                    committing.cancel()
        finally:
            self._dead_letters.close()
            await self._sender.close()

    # taking

    async def _take_batches(self) -> None:
        async for batch in self._consumer.batches():
            for states in batch.gained.values():
                for name, state in states.items():
                    self._restore(Stream.parse(name), state)
            for read in batch.reads:
                self._take(read)
            if batch.reads:
                self._news.set()
                self._news = asyncio.Event()
            if batch.lost:
                await self._give_up(batch.lost)

    def _queue(self, stream: Stream) -> StreamQueue:
        queue = self._queues.get(stream)
        if queue is None:
            queue = self._queues[stream] = StreamQueue(stream, self._receiver, self._consumer.service)
        return queue

    def _restore(self, stream: Stream, state: bytes) -> None:
        queue = self._queue(stream)
        try:
            queue.restore(state)
        except WireError as error:
            log.error("%s: %s; alerts that it stood for are read again", stream.name, error)
        self._work(queue)

    def _take(self, read: Read) -> None:
        queue = self._queue(read.stream)
        was_paused, before = queue.paused, queue.bytes

        def has_room() -> bool:
            return len(queue.items) < _MOST_OF_STREAM and self._bytes + queue.bytes - before < _MOST_BYTES

        follows = queue.take(read, self._history(read.stream), self._consumer.clock.now_ms(), has_room)
        self._bytes += queue.bytes - before
        if queue.accepted is not None and (not follows or (queue.paused and not was_paused)):
            self._consumer.withhold_stream(read.stream, queue.accepted)
            if not follows:  # entries before these were left on the bus
                self._consumer.resume_stream(read.stream)
        if queue.items:
            self._work(queue)
        elif queue.accepted is not None and read.stream not in self._working:
            self._commits.note(read.stream, queue.accepted)

    def _history(self, stream: Stream) -> str:
        return self._consumer.history(stream) or ""

    def _refill(self, queue: StreamQueue) -> None:
        if queue.paused and len(queue.items) <= _MOST_OF_STREAM // 2 and self._bytes < _MOST_BYTES:
            queue.paused = False
            self._consumer.resume_stream(queue.stream)

    # delivering

    def _work(self, queue: StreamQueue) -> None:
        if queue.items and queue.stream not in self._working:
            self._working[queue.stream] = self._group.create_task(self._deliver_all(queue))

    async def _deliver_all(self, queue: StreamQueue) -> None:
        stream = queue.stream
        try:
            while queue.items and stream not in self._ending and self._consumer.owns(stream):
                await self._deliver_next(queue)
            if not queue.items and queue.accepted is not None and stream not in self._ending:
                self._commits.note(stream, queue.accepted)
        finally:
            del self._working[stream]
            self._sending.discard(stream)
            self.condition.leave(stream, is_mended=False)

    async def _deliver_next(self, queue: StreamQueue) -> None:
        before = queue.bytes
        item = queue.head(self._consumer.clock.now_ms())
        if isinstance(item, Summary):
            self._bytes += queue.bytes - before
            await self._settle(queue)
            before = queue.bytes
            summary = queue.head(self._consumer.clock.now_ms())
            assert isinstance(summary, Summary)
            item = queue.fix(summary.notification(self._history(queue.stream), self._receiver.max_age))
        state: bytes | None = None
        if isinstance(item, Fixed):
            if not item.stored:
                await self._commits.store(queue.stream, state=encode_notification(item.notification))
                item.stored = True
            state = b""
        if isinstance(item, Unreadable):
            self._sending.add(queue.stream)
            await self._bury(
                queue.stream, item.id, key_of(self._history(queue.stream), queue.stream, item.id),
                "unreadable", item.why, {"kind": "entry", "body": item.fields},
            )  # fmt: skip
        elif not await self._deliver(queue.stream, item.notification):
            return
        position = queue.done()
        self._bytes += queue.bytes - before
        self._refill(queue)
        await self._commits.store(queue.stream, position, state)
        self._sending.discard(queue.stream)

    async def _settle(self, queue: StreamQueue) -> None:
        """Wait until what is in the stream by now is taken, if it may belong to the summary that is next."""
        with suppress(TimeoutError, RedisError, ReplyError, WireError):
            async with asyncio.timeout(_SETTLE_SECONDS):
                link = await self._consumer.connect()
                try:
                    keys = self._consumer.keys
                    head = await link.ask(
                        "HGET", keys.last(keys.shard(queue.stream.symbol)), queue.stream.name
                    )
                finally:
                    link.close()
                if head is None:
                    return
                newest = StreamId.parse(read_head(queue.stream.name, head).id)
                while queue.is_open and queue.accepted is not None and queue.accepted < newest:
                    news = self._news
                    self._refill(queue)
                    await news.wait()
                    before = queue.bytes
                    queue.head(self._consumer.clock.now_ms())
                    self._bytes += queue.bytes - before

    async def _deliver(self, stream: Stream, notification: Notification) -> bool:
        """Send it until it is delivered or a dead letter. Return False if the stream is given up first."""
        receiver, attempt, next_at, began, began_ms = self._receiver, 0, 0.0, 0.0, 0
        while True:
            outcome = await self._attempt(stream, notification, next_at)
            if outcome is None:
                return False
            attempt += 1
            if outcome.verdict is Verdict.DELIVERED:
                self.condition.delivered(stream, notification.kind)
                return True
            now = self._monotonic()
            if attempt == 1:
                began, began_ms = now, self._consumer.clock.now_ms()
            if outcome.pause:
                self._paused_until = max(self._paused_until, now + outcome.pause)
            wait = backoff(attempt, receiver.backoff, receiver.backoff_max, self._chance)
            next_at = max(now + wait, self._paused_until)
            is_over = next_at - began > receiver.retry_for / SECOND
            if outcome.verdict is Verdict.REFUSED or is_over:
                reason = outcome.reason if outcome.verdict is Verdict.REFUSED else "expired"
                fields: dict[str, str | bytes] = {
                    "kind": notification.kind,
                    "body": notification.body,
                    "attempts": str(attempt),
                    "first_attempt": str(began_ms),
                }
                if outcome.status is not None:
                    fields["status"] = str(outcome.status)
                await self._bury(stream, notification.at, notification.key, reason, outcome.detail, fields)
                return True
            self.condition.failed(stream, outcome)
            self._sending.discard(stream)
            if stream in self._ending:
                return False

    async def _attempt(self, stream: Stream, notification: Notification, not_before: float) -> Outcome | None:
        """Send it once, in its turn. Return None if the stream is given up before that."""
        while True:
            wait = max(not_before, self._paused_until) - self._monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            async with self._slots:
                if self._paused_until > self._monotonic():
                    continue
                if stream in self._ending or not self._consumer.owns(stream):
                    return None
                self._sending.add(stream)
                return await self._sender.send(notification)

    async def _bury(
        self, stream: Stream, id: StreamId, key: str, reason: str, detail: str,
        more: "Mapping[str, str | bytes]",
    ) -> None:  # fmt: skip
        fields = {"key": key, "reason": reason, "detail": detail, **more}
        await self._dead_letters.store(stream, id, fields)
        where = self._consumer.keys.dead_letters(stream, self._consumer.service)
        self.condition.dead_letter(stream, reason, detail, key, where)

    # giving up

    async def _give_up(self, shards: Collection[int]) -> None:
        """Another replica continues with these shards, from what is stored."""
        shard_of = self._consumer.keys.shard
        streams = [stream for stream in self._queues if shard_of(stream.symbol) in shards]
        await self._finish(streams)
        self._commits.forget(shards)
        for stream in streams:
            queue = self._queues.pop(stream)
            self._bytes -= queue.bytes
            self._gone += queue.skipped
        self._ending.difference_update(streams)

    async def _finish(self, streams: Collection[Stream]) -> None:
        """Begin nothing new of these streams, and give what is in flight a moment."""
        self._ending.update(streams)
        tasks = {stream: self._working[stream] for stream in streams if stream in self._working}
        for stream, task in tasks.items():
            if stream not in self._sending:
                task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await asyncio.gather(*tasks.values(), return_exceptions=True)
                await self._commits.flush()
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)

    # showing

    @property
    def waiting(self) -> int:
        """Alerts in memory, a summary counted as one."""
        return sum(len(queue.items) for queue in list(self._queues.values()))

    @property
    def oldest_seconds(self) -> float:
        """Age of the oldest alert that waits; 0 if none does."""
        oldest = [ms for queue in list(self._queues.values()) if (ms := queue.oldest_ms) is not None]
        return max(0, self._consumer.clock.now_ms() - min(oldest)) / 1000 if oldest else 0.0

    @property
    def skipped(self) -> Counter[str]:
        return sum((queue.skipped for queue in list(self._queues.values())), self._gone.copy())

    @property
    def fault(self) -> str:
        """What keeps alerts from the receiver, for /readyz; empty if nothing does."""
        return self._dead_letters.fault or self.condition.outage(self.waiting, self.oldest_seconds)

    def report(self) -> list[str]:
        """Return what `tickbus status` shows of this replica: what fails, what is refused."""
        return [line for line in (self.fault, self.condition.refusals) if line]
