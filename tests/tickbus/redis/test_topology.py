"""One server, Sentinel and Cluster as they really behave: who is master, failovers, where a command goes."""

import asyncio

import pytest
from support.cluster import RedisCluster
from support.redis_server import RedisServer
from support.sentinel import MASTER, RedisWithSentinels
from support.waiting import until_async

from tickbus.errors import ConfigError, RedisError, RedisMisconfigured, RedisUnavailable
from tickbus.protocol.names import Keys
from tickbus.redis.link import Connection, Link, Reply, ReplyError
from tickbus.redis.slots import key_slot
from tickbus.redis.topology import Redis, locate


async def port_of(link: Link) -> int:
    info: bytes = await link.ask("INFO", "server")
    return next(int(line.split(b":")[1]) for line in info.splitlines() if line.startswith(b"tcp_port:"))


async def try_ask(connection: Connection, *command: str) -> Reply:
    """Return the reply; None while the bus is unavailable."""
    try:
        return await connection.ask(*command)
    except RedisUnavailable:
        return None


async def try_link(redis: Redis, key: str) -> Link | None:
    try:
        return await redis.link(key)
    except RedisUnavailable:
        return None


# one server


async def test_single_server_is_linked_for_any_key(redis_server: RedisServer) -> None:
    redis = locate(redis_server.url)
    assert not redis.sharded and str(redis) == redis_server.url
    link, connection, checked = await redis.link("any"), await redis.connect(), await redis.open_checked()
    assert await port_of(link) == redis_server.port
    assert await checked.ask_all([("SET", "a", 1), ("GET", "a")]) == [b"OK", b"1"]
    for one in (link, connection, checked):
        one.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://h:1/0?foo=1", "unknown option 'foo': expected one of ssl_..., client_name"),
        ("redis://h:1/0?protocol=3", "unknown option 'protocol'"),
        ("redis+cluster://h?foo=1", "unknown option 'foo'"),
        ("redis+sentinel://h/m?ssl_ca_certs=/ca", "ssl_ca_certs requires TLS; use rediss instead of redis"),
        ("rediss://h:1/0?ssl_ca_certs=/not/there", "ssl_ca_certs: cannot read /not/there: No such file"),
        ("rediss+cluster://h?ssl_nonsense=1", "unexpected keyword argument 'ssl_nonsense'"),
        ("rediss://h:1/0?ssl_cert_reqs=bogus", "Invalid SSL Certificate Requirements Flag: bogus"),
        ("redis://ann:se/cr@t@h:1/0", "percent-encode / [?] # @ in user and password as %2F"),
    ],
)
def test_invalid_url_option_is_rejected(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        locate(url)
    assert "cr@t" not in str(error.value) and "t@h" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    ["http://host", "redis://host:1/one", "redis+sentinel://host", "redis+cluster://host/1", "nothing", ""],
)
def test_invalid_url_is_rejected_before_connecting(url: str) -> None:
    with pytest.raises(ConfigError, match="--redis"):
        locate(url)


# Cluster


async def test_wrong_kind_of_url_names_the_right_one(
    redis_cluster: RedisCluster, redis_server: RedisServer
) -> None:
    with pytest.raises(RedisMisconfigured, match=r"is a cluster node; use redis\+cluster://"):
        await locate(redis_cluster.nodes[0].url).open_checked()
    with pytest.raises(RedisMisconfigured, match=r"is a cluster node; use redis\+cluster://"):
        await locate(redis_cluster.nodes[0].url).connect()  # as a reader does
    with pytest.raises(RedisMisconfigured, match=r"is not a sentinel .*; use redis://"):
        await locate(f"redis+sentinel://127.0.0.1:{redis_server.port}/{MASTER}").connect()
    with pytest.raises(RedisMisconfigured, match=r"is not a cluster node .*; use redis://"):
        await locate(f"redis+cluster://127.0.0.1:{redis_server.port}").connect()


async def test_open_checked_checks_every_master(redis_cluster: RedisCluster) -> None:
    odd = redis_cluster.master("any")
    odd.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(
            RedisMisconfigured, match=f"127.0.0.1:{odd.port} has maxmemory-policy allkeys-lru"
        ):
            await locate(redis_cluster.url).open_checked()
    finally:
        odd.client.config_set("maxmemory-policy", "noeviction")


async def test_link_reaches_the_master_of_its_key_from_any_node(
    redis_cluster: RedisCluster,
) -> None:
    for named in redis_cluster.nodes[::2]:
        redis = locate(f"redis+cluster://127.0.0.1:{named.port}")
        assert redis.sharded
        for key in ("a", "b", "c", "tickbus:{07}:bell"):
            link = await redis.link(key)
            assert await port_of(link) == redis_cluster.master(key).port
            link.close()


async def test_commands_reach_their_nodes_and_replies_keep_their_order(redis_cluster: RedisCluster) -> None:
    link = await locate(redis_cluster.url).open_checked()
    keys = [f"k{at}" for at in range(200)]
    assert await link.ask_all([("SET", key, at) for at, key in enumerate(keys)]) == [b"OK"] * 200
    assert await link.ask_all([("GET", key) for key in keys]) == [b"%d" % at for at in range(200)]
    assert {node.client.dbsize() for node in redis_cluster.masters()} != {0, 200}
    id = await link.ask("XADD", "s", "1-1", "f", "v")
    assert (id, await link.ask("XREAD", "COUNT", 1, "STREAMS", "s", "0-0")) == (
        b"1-1",
        [[b"s", [[b"1-1", [b"f", b"v"]]]]],
    )
    assert (await link.ask("XINFO", "STREAM", "s"))[:2] == [b"length", 1]
    assert await link.ask("MEMORY", "USAGE", "s") > 0
    assert await link.ask("EVAL", "return redis.call('GET', KEYS[1])", 1, "k7") == b"7"
    assert await link.ask("PING") == b"PONG" and len(await link.ask("TIME")) == 2
    assert await link.ask_all([]) == []
    with pytest.raises(RedisMisconfigured, match="WRONGTYPE"):
        await link.ask_all([("GET", "k1"), ("GET", "s")])
    with pytest.raises(ReplyError, match="unknown command"):
        await link.ask("NONSENSE", "k1")
    assert not link.closed
    link.close()
    assert link.closed
    with pytest.raises(RedisUnavailable, match="closed"):
        await link.ask("GET", "k1")


async def test_failover_moves_commands_to_the_new_master(redis_cluster: RedisCluster) -> None:
    redis = locate(redis_cluster.url)
    connection, old = await redis.connect(), await redis.link("a")
    await connection.ask("SET", "a", 1)
    new = await asyncio.to_thread(redis_cluster.fail_over, "a")
    with pytest.raises(RedisUnavailable, match="MOVED"):
        await old.ask("GET", "a")
    assert await connection.ask_all([("GET", "a"), ("SET", "b", 2), ("GET", "b")]) == [b"1", b"OK", b"2"]
    fresh = await redis.link("a")
    assert await port_of(fresh) == new.port
    for one in (connection, old, fresh):
        one.close()


async def test_migrating_slot_is_served_by_both_nodes(redis_cluster: RedisCluster) -> None:
    redis = locate(redis_cluster.url)
    connection, raw = await redis.connect(), await redis.link("{x}")
    keys = [f"{{x}}{at}" for at in range(10)]
    await connection.ask_all([("SET", key, key) for key in keys])
    to = next(node for node in redis_cluster.masters() if node is not redis_cluster.master("{x}"))
    halfway = asyncio.Event()
    loop, resumed = asyncio.get_running_loop(), asyncio.Event()

    def between() -> None:
        loop.call_soon_threadsafe(halfway.set)
        asyncio.run_coroutine_threadsafe(resumed.wait(), loop).result(20)

    moving = asyncio.create_task(asyncio.to_thread(redis_cluster.move, key_slot("{x}"), to, between))
    await halfway.wait()
    assert await connection.ask_all([("GET", key) for key in keys]) == [key.encode() for key in keys]
    assert await connection.ask("SET", "{x}new", 1) == b"OK"
    with pytest.raises(RedisUnavailable, match="TRYAGAIN"):
        await raw.ask("MGET", *keys)
    # never "nil": a key that is missing here may be on the other node
    with pytest.raises(RedisUnavailable, match="ASK"):
        await raw.ask_all([("GET", key) for key in keys])
    resumed.set()
    await moving
    with pytest.raises(RedisUnavailable, match="MOVED"):
        await raw.ask("GET", keys[0])
    assert await connection.ask("MGET", *keys) == [key.encode() for key in keys]
    assert await connection.ask("GET", "{x}new") == b"1"
    fresh = await redis.link("{x}")
    assert await port_of(fresh) == to.port
    for one in (connection, raw, fresh):
        one.close()


async def test_killed_cluster_master_is_replaced(redis_cluster: RedisCluster) -> None:
    redis = locate(redis_cluster.url)
    connection, raw = await redis.connect(), await redis.link("a")
    await connection.ask("SET", "a", 1)
    redis_cluster.master("a").kill()
    with pytest.raises(RedisUnavailable):
        await raw.ask("GET", "a")
    assert await until_async(lambda: try_ask(connection, "GET", "a")) == b"1"
    link = await until_async(lambda: try_link(redis, "a"))
    assert await link.ask("GET", "a") == b"1"
    for one in (connection, raw, link):
        one.close()


async def test_cluster_without_a_reachable_node_is_unavailable() -> None:
    with pytest.raises(
        RedisUnavailable, match=r"no node of the cluster at redis\+cluster://\*\*\*@127.0.0.1:1 responded"
    ):
        await locate("redis+cluster://ann:secret@127.0.0.1:1").connect()


async def test_shards_of_a_dead_cluster_share_one_refresh() -> None:
    connections = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        cluster = locate(f"redis+cluster://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        ends = await asyncio.gather(
            *(cluster.link(Keys().bell(shard)) for shard in range(64)), return_exceptions=True
        )
        assert {type(end) for end in ends} == {RedisUnavailable}
        assert connections < 10  # a machine that stalls in between causes another refresh


# Sentinel


async def test_servers_and_sentinels_have_separate_logins(
    redis_sentinels: RedisWithSentinels,
) -> None:
    for server in redis_sentinels.servers:
        server.client.execute_command("ACL", "SETUSER", "ann", "on", ">p@ss/w?rd", "~*", "+@all")
    for sentinel in redis_sentinels.sentinels:
        sentinel.client.execute_command("ACL", "SETUSER", "default", "resetpass", ">wa&tch")
    try:
        with pytest.raises(RedisMisconfigured, match=r"requires a password|rejected the login"):
            await locate(redis_sentinels.url).connect()
        url = redis_sentinels.url.replace("://", "://ann:p%40ss%2Fw%3Frd@") + "?sentinel_password=wa%26tch"
        link = await locate(url).open_checked()
        assert await link.ask("ACL", "WHOAMI") == b"ann"
        link.close()
        with pytest.raises(RedisMisconfigured, match="rejected the login"):
            await locate(url.replace("w%3Frd", "wrong")).connect()
    finally:
        for sentinel in redis_sentinels.sentinels:
            sentinel.client.execute_command("ACL", "SETUSER", "default", "nopass")


async def test_unknown_master_name_is_rejected(redis_sentinels: RedisWithSentinels) -> None:
    with pytest.raises(RedisMisconfigured, match="does not know master 'nobody'"):
        await locate(redis_sentinels.url.replace(MASTER, "nobody")).connect()
    with pytest.raises(RedisUnavailable, match="no master at"):
        await locate(f"redis+sentinel://127.0.0.1:1/{MASTER}").connect()


async def test_killed_sentinel_master_is_replaced(redis_sentinels: RedisWithSentinels) -> None:
    # the first sentinel is down: the next one is queried
    url = redis_sentinels.url.replace("redis+sentinel://", "redis+sentinel://127.0.0.1:1,")
    redis = locate(url)
    link = await redis.open_checked()
    await link.ask("SET", "a", 1)
    assert await link.ask("WAIT", 1, 1000) == 1
    redis_sentinels.master().kill()
    with pytest.raises(RedisError):
        await link.ask("GET", "a")
    again = await until_async(lambda: try_link(redis, "a"))
    assert await again.ask("GET", "a") == b"1"
    again.close()


async def test_links_to_a_replaced_master_are_closed_although_it_still_responds(
    redis_sentinels: RedisWithSentinels,
) -> None:
    redis = locate(redis_sentinels.url)
    link = await redis.link("a")
    await asyncio.to_thread(redis_sentinels.fail_over)
    await until_async(lambda: link.closed, 5)
    again = await redis.link("a")
    assert await port_of(again) == redis_sentinels.master().port
    again.close()
