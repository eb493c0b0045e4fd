"""Why Redis refuses writes, as it says of itself: each master of a cluster. tests/tools has one server."""

from support.cluster import RedisCluster

from tickbus.redis.refusals import find_refusals
from tickbus.redis.topology import locate


async def test_masters_of_a_cluster_that_refuse_are_named(redis_cluster: RedisCluster) -> None:
    connection = await locate(redis_cluster.url).connect()
    assert await find_refusals(connection) == []
    full, alone, _ = redis_cluster.masters()
    try:
        full.client.config_set("maxmemory", "1mb")
        alone.client.config_set("min-replicas-to-write", 7)
        found = dict(line.split(": ", 1) for line in await find_refusals(connection))
    finally:
        full.client.config_set("maxmemory", "0")
        alone.client.config_set("min-replicas-to-write", 0)
    assert found.keys() == {f"OOM (127.0.0.1:{full.port})", f"NOREPLICAS (127.0.0.1:{alone.port})"}
    assert await find_refusals(connection) == []
    connection.close()
