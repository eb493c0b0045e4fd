"""Checks whether a server may carry a bus; if not, the error has the command that fixes it."""

import logging

from tickbus.errors import RedisMisconfigured, RedisUnavailable
from tickbus.redis.link import Link, Reply, ReplyError
from tickbus.redis.resp import pairs
from tickbus.sanitize import redact

log = logging.getLogger("tickbus.redis")


async def open_checked(url: str) -> Link:
    """Connect. RedisMisconfigured, with the command that fixes it, if this server may not carry a bus."""
    link = await Link.open(url)
    await check_server(link, redact(url))
    return link


_IS_SENTINEL = "is a sentinel; use redis+sentinel://host:port/<master name>/0"
_IS_CLUSTER_NODE = "is a cluster node; use redis+cluster://host:port"


async def check_standalone(link: Link, where: str) -> None:
    """Close the link and raise RedisMisconfigured if this server is a sentinel or a cluster node.

    For readers: any user has the permission for this check.
    """
    try:
        fields = await link.ask("HELLO")
    except (ReplyError, RedisMisconfigured):  # not even that is allowed: later commands will show why
        return
    mode = dict(pairs(fields)).get(b"mode")
    if mode in (b"sentinel", b"cluster"):
        link.close()
        raise RedisMisconfigured(
            f"Redis at {where} {_IS_SENTINEL if mode == b'sentinel' else _IS_CLUSTER_NODE}"
        )


async def check_server(link: Link, where: str, cluster: bool = False) -> None:
    """Close the link and raise RedisMisconfigured, with the fix, unless this server may carry a bus.

    cluster: whether it must be a cluster node.
    """
    info = parse_info(await ask_permitted(link, "INFO"))
    if problem := _problem(info, cluster):
        link.close()
        raise RedisMisconfigured(f"Redis at {where} {problem}")
    if info.get("aof_enabled") == "0":
        log.warning(
            "AOF is disabled on Redis at %s: restarting Redis loses the bus;"
            " fix: redis-cli CONFIG SET appendonly yes",
            where,
        )


async def ask_permitted(link: Link, command: str) -> Reply:
    """Like `ask`, but close the link on an error, and say how to grant a missing permission."""
    try:
        return await link.ask(command)
    except RedisMisconfigured as error:
        link.close()
        raise RedisMisconfigured(
            f"{error}{f'; fix: ACL SETUSER <user> +{command.lower()}' if 'NOPERM' in str(error) else ''}"
        ) from None
    except RedisUnavailable:
        link.close()
        raise


def _problem(info: dict[str, str], cluster: bool) -> str | None:
    version = info.get("valkey_version") or info.get("redis_version", "0")
    if int(version.partition(".")[0]) < 7:
        return f"is version {version}; tickbus requires Redis or Valkey 7 or newer"
    if info.get("redis_mode") == "sentinel":
        return _IS_SENTINEL
    if info.get("loading") == "1":
        return "is still loading its data; wait and try again"
    if info.get("cluster_enabled") == "1" and not cluster:
        return _IS_CLUSTER_NODE
    if info.get("cluster_enabled") == "0" and cluster:
        return "is not a cluster node; use redis://host:port/0"
    if info.get("role") == "slave":
        return "is a replica; use its master"
    if (policy := info.get("maxmemory_policy", "noeviction")) != "noeviction":
        return (
            f"has maxmemory-policy {policy}, which deletes ticks when memory is short;"
            " fix: redis-cli CONFIG SET maxmemory-policy noeviction"
        )
    return None


def parse_info(text: bytes) -> dict[str, str]:
    """Return the fields of the reply to INFO."""
    pairs = (line.split(":", 1) for line in text.decode(errors="replace").splitlines() if ":" in line)
    return {key: value.strip() for key, value in pairs}
