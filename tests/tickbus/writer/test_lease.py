"""The lease on a real Redis: one holder, passed on when it ends, kept while a server is unavailable."""

import asyncio
from functools import partial

import pytest
from support.redis_server import RedisServer
from support.waiting import until_async
from support.writing import Writer

from tickbus.errors import Fenced
from tickbus.protocol.names import Keys
from tickbus.redis.link import Link
from tickbus.units import MILLISECOND, Duration
from tickbus.writer.lease import Lease

TTL = Duration(600 * MILLISECOND)
KEY = Keys().lease("x")


def lease(server: RedisServer, owner: str = "x", holder: str | None = None) -> Lease:
    return Lease(partial(Link.open, server.url), Keys(), owner, TTL, holder)


async def end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_standby_waits_until_the_lease_is_released(redis_server: RedisServer) -> None:
    first, second, other = lease(redis_server), lease(redis_server), lease(redis_server, "y")
    await asyncio.wait_for(first.acquire(), 5)
    await asyncio.wait_for(other.acquire(), 5)
    keeping = asyncio.create_task(first.keep())
    waiting = asyncio.create_task(second.acquire())
    done, _ = await asyncio.wait((waiting,), timeout=1.5 * TTL / 1e9)
    assert not done
    assert redis_server.client.get(KEY) == first.holder.encode()
    await end(keeping)
    await first.release()
    await asyncio.wait_for(waiting, 5)
    assert redis_server.client.get(KEY) == second.holder.encode()
    await second.release()
    assert not redis_server.client.exists(KEY)
    await other.release()


async def test_dead_holder_is_replaced_after_the_ttl(redis_server: RedisServer) -> None:
    first, second = lease(redis_server), lease(redis_server)
    await first.acquire()
    await asyncio.wait_for(second.acquire(), 5)
    assert redis_server.client.get(KEY) == second.holder.encode()
    with pytest.raises(Fenced, match="holds the lease now"):
        await asyncio.wait_for(first.keep(), 5)
    await first.release()  # it does not own the lease any more: a no-op
    assert redis_server.client.get(KEY) == second.holder.encode()
    await second.release()


async def test_holder_that_was_cut_off_continues_if_nobody_took_over(redis_server: RedisServer) -> None:
    first = lease(redis_server)
    await first.acquire()
    keeping = asyncio.create_task(first.keep())
    redis_server.client.delete(KEY)
    redis_server.client.client_kill_filter(_type="normal", skipme=True)
    await until_async(lambda: redis_server.client.get(KEY) == first.holder.encode())
    redis_server.stop()
    redis_server.client.close()
    await asyncio.to_thread(redis_server.start)
    redis_server.client.delete(KEY)
    await until_async(lambda: redis_server.client.get(KEY) == first.holder.encode())
    assert not keeping.done()
    await end(keeping)
    await first.release()


async def test_releasing_without_a_server_does_not_raise(redis_server: RedisServer) -> None:
    first = lease(redis_server)
    await first.acquire()
    redis_server.stop()
    await first.release()


async def test_flush_does_not_take_the_lease_from_a_live_holder(redis_server: RedisServer) -> None:
    """A standby that has long been watching sees the lease gone before its holder can set it again."""
    leader, standby = Writer(redis_server.url), Writer(redis_server.url)
    first = lease(redis_server, "test", leader.publisher.fences.holder)
    second = lease(redis_server, "test", standby.publisher.fences.holder)
    await first.acquire(leader.publisher.released)
    await leader.open()
    keeping = asyncio.create_task(first.keep())
    waiting = asyncio.create_task(second.acquire(standby.publisher.released))
    for _ in range(3):
        await asyncio.wait((waiting,), timeout=1.2 * TTL / 1e9)
        # no renewal in between: the standby checks first
        await end(keeping)
        redis_server.client.flushall()
        checked_at = second._checked_at
        await until_async(lambda checked_at=checked_at: second._checked_at > checked_at)  # type: ignore[misc]
        keeping = asyncio.create_task(first.keep())
        await until_async(lambda: redis_server.client.get(first._key) is not None)
    assert redis_server.client.get(first._key) == first.holder.encode()
    assert not waiting.done()
    assert not keeping.done()
    await end(keeping)  # it dies: after the TTL the standby takes over
    assert await asyncio.wait_for(waiting, 5)
    for one in (leader, standby):
        one.close()
    first.close()
    await second.release()
