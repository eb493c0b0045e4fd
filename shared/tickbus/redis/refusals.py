"""Why a server would refuse writes now, by what it says of itself: without a write, for those that only read.

Each reason begins with the first word of the error that writers get.
"""

from tickbus.errors import RedisMisconfigured
from tickbus.redis.link import Connection, Link, Reply, ReplyError
from tickbus.redis.preflight import parse_info
from tickbus.redis.resp import pairs

_MB = 1 << 20


async def find_refusals(connection: Connection) -> list[str]:
    """Return a line for each reason of each master: what is wrong, and what mends it.

    What this user may not ask is left out. RedisUnavailable if a master does not answer.
    """
    found = []
    for name, link in await connection.masters():
        where = f" ({name})" if name else ""
        reply = await _permitted(link, "INFO")
        info = parse_info(reply) if isinstance(reply, bytes) else {}
        config: dict[str, str] = {}
        for parameter in _parameters(info):
            reply = await _permitted(link, "CONFIG", "GET", parameter)
            config |= {key.decode(): value.decode() for key, value in pairs(reply or [])}
        for reason in _reasons(info, config):
            word, _, text = reason.partition(": ")
            found.append(f"{word}{where}: {text}")
    return found


async def _permitted(link: Link, *command: str) -> Reply:
    """Return a reply; None if this user may not ask, or this server does not know the command."""
    try:
        return await link.ask(*command)
    except (ReplyError, RedisMisconfigured):
        return None


def _parameters(info: dict[str, str]) -> list[str]:
    """Return the parameters that decide about what INFO shows."""
    parameters = []
    if info.get("rdb_last_bgsave_status") == "err":
        parameters += ["stop-writes-on-bgsave-error", "save"]
    if "min_slaves_good_slaves" in info:
        parameters.append("min-replicas-to-write")
    return parameters


def _reasons(info: dict[str, str], config: dict[str, str]) -> list[str]:
    reasons = []
    if info.get("role") == "slave":
        reasons.append("READONLY: it is a replica; use its master")
    if info.get("rdb_last_bgsave_status") == "err":
        stops = config.get("stop-writes-on-bgsave-error")
        if stops == "yes" and config.get("save"):
            reasons.append(
                "MISCONF: its last snapshot failed; fix: free its disk or mend its folder, then "
                "redis-cli BGSAVE"
            )
    if info.get("aof_enabled") == "1" and info.get("aof_last_write_status") == "err":
        reasons.append("MISCONF: it cannot write its append-only file; fix: free its disk or mend its folder")
    limit = _number(info, "maxmemory")
    used = _number(info, "used_memory") - _number(info, "mem_not_counted_for_evict")
    if 0 < limit < used:
        reasons.append(
            f"OOM: {used / _MB:.1f} MB used, maxmemory is {limit / _MB:.1f} MB; fix: redis-cli CONFIG SET "
            "maxmemory MORE, or keep less (--retention, --retention-bytes)"
        )
    wanted = _number(config, "min-replicas-to-write")
    good = _number(info, "min_slaves_good_slaves")
    if good < wanted:
        reasons.append(
            f"NOREPLICAS: {good} replicas are in time, min-replicas-to-write is {wanted}; "
            "fix: mend the replicas"
        )
    return reasons


def _number(values: dict[str, str], name: str) -> int:
    """Return a number; 0 if it is not there, or none."""
    text = values.get(name, "")
    return int(text) if text.isdigit() else 0
