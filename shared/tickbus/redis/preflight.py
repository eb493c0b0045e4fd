"""Whether a server may carry a bus; if not, the command that mends it."""

import logging

from tickbus.errors import RedisMisconfigured, RedisUnavailable
from tickbus.redis.link import Link, Reply, ReplyError
from tickbus.redis.resp import pairs
from tickbus.sanitize import redact

log = logging.getLogger("tickbus.redis")


async def open_checked(url: str) -> Link:
    """Connect and make sure that this server may carry a bus; RedisMisconfigured says the command that mends it."""
    link = await Link.open(url)
    await check_fit(link, redact(url))
    return link


_SENTINEL_TOLD = "is a sentinel; write redis+sentinel://host:port/<master name>/0"
_CLUSTER_TOLD = "is a node of a cluster; write redis+cluster://host:port"


async def check_alone(link: Link, where: str) -> None:
    """Closes the link and raises RedisMisconfigured if this server is a sentinel or part of a cluster. For those who only read: any user may ask."""
    try:
        fields = await link.ask("HELLO")
    except (ReplyError, RedisMisconfigured):  # not even that is allowed: what follows will tell
        return
    mode = dict(pairs(fields)).get(b"mode")
    if mode in (b"sentinel", b"cluster"):
        link.close()
        raise RedisMisconfigured(
            f"Redis at {where} {_SENTINEL_TOLD if mode == b'sentinel' else _CLUSTER_TOLD}"
        )


async def check_fit(link: Link, where: str, cluster: bool = False) -> None:
    """Closes the link and raises RedisMisconfigured, with the remedy, unless this server may carry a bus. `cluster`: it may be a node of one."""
    info = _parse_info(await ask_permitted(link, "INFO"))
    if problem := _problem(info, cluster):
        link.close()
        raise RedisMisconfigured(f"Redis at {where} {problem}")
    if info.get("aof_enabled") == "0":
        log.warning(
            "Redis at %s keeps no append-only file: a restart of it loses the bus; mend it with: redis-cli CONFIG SET appendonly yes",
            where,
        )


async def ask_permitted(link: Link, command: str) -> Reply:
    """As `ask`; closes the link on an error, and says how to allow what the user may not do."""
    try:
        return await link.ask(command)
    except RedisMisconfigured as error:
        link.close()
        raise RedisMisconfigured(
            f"{error}{f'; allow it: ACL SETUSER <user> +{command.lower()}' if 'NOPERM' in str(error) else ''}"
        ) from None
    except RedisUnavailable:
        link.close()
        raise


def _problem(info: dict[str, str], cluster: bool) -> str | None:
    version = info.get("valkey_version") or info.get("redis_version", "0")
    if int(version.partition(".")[0]) < 7:
        return f"is version {version}; tickbus needs Redis or Valkey 7 or newer"
    if info.get("redis_mode") == "sentinel":
        return _SENTINEL_TOLD
    if info.get("loading") == "1":
        return "is still loading its data; wait and start again"
    if info.get("cluster_enabled") == "1" and not cluster:
        return _CLUSTER_TOLD
    if info.get("cluster_enabled") == "0" and cluster:
        return "is no node of a cluster; write redis://host:port/0"
    if info.get("role") == "slave":
        return "is a replica; name the master"
    if (policy := info.get("maxmemory_policy", "noeviction")) != "noeviction":
        return f"has maxmemory-policy {policy}, which deletes ticks when memory is short; mend it with: redis-cli CONFIG SET maxmemory-policy noeviction"
    return None


def _parse_info(text: bytes) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in text.decode(errors="replace").splitlines() if ":" in line)
    return {key: value.strip() for key, value in pairs}
