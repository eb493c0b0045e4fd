"""The matrix: what can be done to the system, and how it is healed. One row per kind of fault and role.

A fault has a target (a process, a link of the proxy, Redis, the vendor). Faults that share a target never
overlap; all others may.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from redis.backoff import NoBackoff
from redis.retry import Retry
from support.client import connect

from faults import attacks
from faults.backends import Cluster, OneServer, Sentinels
from faults.disk import may_mount
from faults.system import Shape, System, faketime
from tickbus.redis.slots import key_slot

Act = Callable[[System, str], None]
ROLES = ("gateway", "bars", "recorder", "app")
RELAY = "relay"
"""A role of systems that have relays; no attack is made on it here: tests/relay and `make fuzz` do that."""
SHORT, PAUSE_1, PAUSE_30 = (0.2, 3.0), (1.0, 1.3), (30.0, 31.0)


@dataclass(frozen=True)
class Row:
    name: str
    """The fault, and what it is done to: `kill-9 gateway`."""
    target: str
    """A role, `redis-ROLE`, `client-relay` or `vendor-gateway` for links, `http-ROLE`, `redis`, `vendor`,
    `disk`, `clock`."""
    seconds: tuple[float, float]
    """How long it lasts: minimum and maximum."""
    inject: Act
    heal: Act
    only: str | None = None
    """The kind of backend that it applies to; None: all."""
    machine: Callable[[Shape], bool] = lambda shape: True
    """Whether the machine can do it."""
    once: bool = False
    """At most once in the lifetime of a system."""
    loses: bool = False
    """Redis loses entries that it acknowledged: only the gateway still has them."""
    expected: str = ""
    """Of an attack: what must come of it, beside what holds for all faults."""

    def fits(self, shape: Shape) -> bool:
        if self.target.endswith(RELAY) and not shape.relays:
            return False
        return self.only in (None, shape.redis) and self.machine(shape)

    def takes_copy(self, shape: Shape) -> bool:
        """Whether a gateway may be gone afterwards, and with it what only it had."""
        if shape.gateways > 1 and self.target in ("gateway", "redis-gateway"):
            return True  # anything that lasts longer than the lease makes the standby take over
        return self.target == "gateway" and not self.fault.startswith("pause")

    @property
    def fault(self) -> str:
        return self.name.partition(" ")[0]


def _nothing(system: System, target: str) -> None:
    pass


def _kill(system: System, part: str) -> None:
    system.kill(part)


def _restart(system: System, part: str) -> None:
    system.restart(part)


def _terminate(system: System, part: str) -> None:
    system.terminate(part)


def _restart_after_exit(system: System, part: str) -> None:
    system.expect_clean_exit(part)
    system.restart(part)


def _freeze(system: System, part: str) -> None:
    system.freeze(part)


def _thaw(system: System, part: str) -> None:
    system.thaw(part)


def _link(command: str, system: System, link: str) -> None:
    word, _, value = command.partition(" ")
    system.proxy.command(f"{word} {link} {value}".strip())


def _cut_and_refuse(how: str, system: System, link: str) -> None:
    system.proxy.command(f"refuse {link}")
    system.proxy.command(f"{how} {link}")


def _vendor(line: str, system: System, target: str) -> None:
    system.parts["simulator"].send_line(line)


def _configure(name: str, value: str, system: System, target: str) -> None:
    with connect(system.redis.port, socket_timeout=3, retry=Retry(NoBackoff(), 0)) as client:
        client.config_set(name, value)


def _churn(system: System, target: str) -> None:
    system.begin_churn()


def _end_churn(system: System, target: str) -> None:
    """Kill the holders: their wants end with their leases."""
    system.end_churn()


def _redis(method: str, system: System, target: str) -> None:
    getattr(system.redis, method)()


def _flush(system: System, target: str) -> None:
    system.flushed = True
    system.redis.client.flushall()


def _step(offset: str, system: System, target: str) -> None:
    system.step_clock(offset)


def _fill(system: System, target: str) -> None:
    system.disk.fill()


def _clear(system: System, target: str) -> None:
    system.disk.clear()


def _fill_spill(system: System, target: str) -> None:
    """Pause Redis too: otherwise nobody uses that disk."""
    system.spill_disk.fill()
    system.redis.pause()


def _clear_spill(system: System, target: str) -> None:
    system.spill_disk.clear()
    system.redis.resume()


def _note_size(system: System, target: str) -> None:
    system.redis.synced_size = system.redis.log_size()


def _lose_power(system: System, target: str) -> None:
    """Drop what Redis wrote since the fault began: acknowledged, but never on its disk."""
    system.redis.kill()
    system.redis.truncate_log(system.redis.synced_size)
    system.redis.start()


def _second_gateway(system: System, part: str) -> None:
    """Pause the active gateway past its lease beside another one; both run when it wakes."""
    if len(system.of("gateway")) == 1:
        system.add_gateway(2)
    system.freeze(part)


def _process_rows() -> list[Row]:
    rows = []
    for role in (*ROLES, RELAY):
        rows += [
            Row(f"kill-9 {role}", role, SHORT, _kill, _restart),
            Row(f"kill-15 {role}", role, SHORT, _terminate, _restart_after_exit),
            Row(f"pause-1s {role}", role, PAUSE_1, _freeze, _thaw),
            Row(f"pause-30s {role}", role, PAUSE_30, _freeze, _thaw),
        ]
    past_lease = (System.lease_ttl + 2.0, System.lease_ttl + 5.0)
    return [*rows, Row("two-gateways gateway", "gateway", past_lease, _second_gateway, _thaw)]


def _fail_over(system: System, target: str) -> None:
    """Fail over as an operator does; the old master remains a second one for a while."""
    assert isinstance(system.backend, Sentinels)
    system.backend.servers.fail_over()


def _master(how: str, system: System, target: str) -> None:
    assert isinstance(system.backend, Sentinels)
    getattr(system.backend.servers.master(), how)()


def _kill_ahead_of_replica(system: System, target: str) -> None:
    """Cut the replica off for a while, then kill the master: what it acknowledged meanwhile is gone.
    Another fault may hold up the ticks; then there is less to lose."""
    assert isinstance(system.backend, Sentinels)
    servers = system.backend.servers
    master = servers.master()
    replica = next(server for server in servers.servers if server is not master)
    replica.client.config_set("masterauth", "none-is-wanted")  # refused by a master without a password
    before = system.heads()
    master.client.execute_command("CLIENT", "KILL", "TYPE", "replica")
    with suppress(AssertionError):
        system.until(
            lambda: all(system.heads()[name].seq > before[name].seq + 10 for name in system.tick_streams()),
            3,
            "the master continues",
        )
    master.kill()


def _reconnect_replica(system: System, target: str) -> None:
    assert isinstance(system.backend, Sentinels)
    for server in system.backend.servers.servers:
        if server.process is not None and server.process.poll() is None:
            server.client.config_set("masterauth", "")
    _heal_servers(system, target)


def _cluster_fail_over(system: System, target: str) -> None:
    assert isinstance(system.backend, Cluster)
    system.backend.servers.fail_over(_busy_key(system))


def _cluster_master(how: str, system: System, target: str) -> None:
    assert isinstance(system.backend, Cluster)
    getattr(system.backend.servers.master(_busy_key(system)), how)()


def _move(system: System, target: str) -> None:
    """Migrate a slot with streams in it to another master, under load."""
    assert isinstance(system.backend, Cluster)
    servers, key = system.backend.servers, _busy_key(system)
    holder = servers.master(key)
    servers.move(key_slot(key), next(node for node in servers.masters() if node is not holder))


def _busy_key(system: System) -> str:
    return system.keys.bell(system.keys.shard(system.symbols[0]))


def _heal_servers(system: System, target: str) -> None:
    assert not isinstance(system.backend, OneServer)
    system.backend.servers.heal()


def _replicated_rows() -> list[Row]:
    sentinel, cluster = "sentinel", "cluster"
    return [
        Row("sentinel-failover", "redis", (2.0, 4.0), _fail_over, _heal_servers, sentinel, loses=True),
        Row(
            "sentinel-master-kill-9",
            "redis",
            (4.0, 8.0),
            partial(_master, "kill"),
            _heal_servers,
            sentinel,
            loses=True,
        ),
        Row(
            "sentinel-replica-behind",
            "redis",
            (4.0, 8.0),
            _kill_ahead_of_replica,
            _reconnect_replica,
            sentinel,
            loses=True,
        ),
        Row("sentinel-master-pause-1s", "redis", PAUSE_1, partial(_master, "pause"), _heal_servers, sentinel),
        Row(
            "sentinel-master-paused-past-failover",
            "redis",
            (5.0, 8.0),
            partial(_master, "pause"),
            _heal_servers,
            sentinel,
            loses=True,
        ),
        Row("cluster-failover", "redis", (1.0, 3.0), _cluster_fail_over, _heal_servers, cluster),
        Row(
            "cluster-master-kill-9",
            "redis",
            (5.0, 9.0),
            partial(_cluster_master, "kill"),
            _heal_servers,
            cluster,
            loses=True,
        ),
        Row(
            "cluster-master-paused-past-failover",
            "redis",
            (6.0, 9.0),
            partial(_cluster_master, "pause"),
            _heal_servers,
            cluster,
            loses=True,
        ),
        Row("cluster-slot-migration", "redis", (0.1, 0.2), _move, _nothing, cluster),
    ]


def _redis_rows() -> list[Row]:
    pause, resume = partial(_redis, "pause"), partial(_redis, "resume")
    return [replace(row, only="server") for row in _server_rows(pause, resume)]


def _server_rows(pause: Act, resume: Act) -> list[Row]:
    return [
        Row("redis-kill-9", "redis", SHORT, partial(_redis, "kill"), partial(_redis, "start")),
        Row("redis-stop", "redis", SHORT, partial(_redis, "stop"), partial(_redis, "start")),
        Row("redis-pause-1s", "redis", PAUSE_1, pause, resume),
        Row("redis-pause-30s", "redis", PAUSE_30, pause, resume),
        Row("redis-power-loss", "redis", (0.5, 1.5), _note_size, _lose_power, loses=True),
        Row("redis-flush", "redis", (3.0, 3.5), _flush, _nothing, once=True, loses=True),
        Row(
            "redis-oom",
            "redis",
            (1.0, 6.0),
            partial(_configure, "maxmemory", "1mb"),
            partial(_configure, "maxmemory", "0"),
        ),
    ]


def _link_rows() -> list[Row]:
    heal = partial(_link, "heal")
    rows = []
    for target in [*(f"redis-{role}" for role in (*ROLES, RELAY)), "vendor-gateway", "client-relay"]:
        rows += [
            Row(f"cut {target}", target, (0.1, 3.0), partial(_cut_and_refuse, "cut"), heal),
            Row(f"reset {target}", target, (0.0, 0.1), partial(_link, "reset"), heal),
            Row(f"half-open {target}", target, (3.0, 10.0), partial(_link, "half-open"), heal),
            Row(f"stall {target}", target, (0.5, 8.0), partial(_link, "stall"), heal),
            Row(f"slow {target}", target, (2.0, 5.0), partial(_link, "slow 40"), heal),
            Row(f"slice {target}", target, (2.0, 5.0), partial(_link, "slice 64"), heal),
        ]
    return [replace(row, only="server") if row.target.startswith("redis-") else row for row in rows]


_VENDOR = {
    "duplicate": "duplicate=50",
    "reorder": "reorder=20",
    "drop": "drop=20",
    "jump": "jump=500",
    "reset": "reset=1000000",
    "mute": "mute=1s",
    "mute-connection": "mute-connection=20s",
    "close": "close=1008 reason=policy",
    "cut": "cut",
    "half-open": "half-open",
    "garbage": "garbage=5",
    "binary": "binary=5",
    "huge": "huge=5MB",
    "corrupt": "corrupt=10",
    "refuse": "refuse=3s",
    "slow-down": "slow-down",
    "shutdown": "shutdown=2s",
}
_LASTING = {
    "mute": 1.0,
    "mute-connection": 4.0,
    "half-open": 4.0,
    "refuse": 3.0,
    "shutdown": 2.5,
    "slow-down": 33.0,
}
"""Seconds until the fault is over; after `slow-down` a gateway stays away for 30 s, as the vendor demands."""


def _close_after_login(system: System, target: str) -> None:
    for after in (0, 100, 400, 800, 1500):
        system.parts["simulator"].send_line(f"at={after}ms close=1008 reason=policy")


def _vendor_rows() -> list[Row]:
    rows = []
    for name, line in _VENDOR.items():
        seconds = _LASTING.get(name, 0.1)
        rows.append(
            Row(
                f"vendor-{name}",
                "vendor",
                (seconds, seconds + 0.1),
                partial(_vendor, line),
                _nothing,
                once=name == "reset",
            )
        )
    return [*rows, Row("vendor-close-after-login", "vendor", (1.6, 1.8), _close_after_login, _nothing)]


def _machine_rows() -> list[Row]:
    def clock(shape: Shape) -> bool:
        return shape.clock

    def disk(shape: Shape) -> bool:
        return may_mount()

    return [
        Row(
            "clock+1h gateway",
            "clock",
            (2.0, 8.0),
            partial(_step, "+3600"),
            partial(_step, "+0"),
            machine=clock,
        ),
        Row(
            "clock-1h gateway",
            "clock",
            (2.0, 8.0),
            partial(_step, "-3600"),
            partial(_step, "+0"),
            machine=clock,
        ),
        Row("want-churn", "wants", (5.0, 15.0), _churn, _end_churn),
        Row("disk-full recorder", "disk", (1.0, 8.0), _fill, _clear, machine=disk),
        Row("disk-full gateway", "redis", (2.0, 8.0), _fill_spill, _clear_spill, only="server", machine=disk),
    ]


def _attack_rows() -> list[Row]:
    rows = []
    for name, (seconds, inject, heal, expected) in attacks.VENDOR.items():
        once = name in ("jump", "reset")
        rows.append(Row(f"attack-{name}", "vendor", seconds, inject, heal, once=once, expected=expected))
    for name, (seconds, inject, heal, expected) in attacks.REDIS.items():
        rows.append(Row(f"attack-{name}", "redis", seconds, inject, heal, "server", expected=expected))
    for role in ROLES:
        if role != "app":
            rows.append(
                Row(
                    f"attack-http {role}",
                    f"http-{role}",
                    (4.0, 8.0),
                    attacks.half_requests,
                    attacks.end_requests,
                    expected=attacks.HTTP,
                )
            )
        rows.append(
            Row(
                f"attack-files {role}",
                f"redis-{role}",
                (1.0, 4.0),
                attacks.no_files,
                attacks.files_again,
                "server",
                expected=attacks.FILES,
            )
        )
    return rows


ATTACKS = {row.name: row for row in _attack_rows()}
"""Chosen by `--attack`, or by name: they need an attacker in front of the vendor."""
ROWS = {
    row.name: row
    for row in (
        *_process_rows(),
        *_redis_rows(),
        *_replicated_rows(),
        *_link_rows(),
        *_vendor_rows(),
        *_machine_rows(),
    )
}


def choose(words: str) -> list[Row]:
    """Return the rows whose names begin with one of `words`, separated by commas (`kill,redis-stop,slow
    vendor`).

    Empty: all rows but the attacks. ValueError for a word that no name begins with.
    """
    if not words:
        return list(ROWS.values())
    chosen: dict[str, Row] = {}
    for word in words.split(","):
        found = {name: row for name, row in (ROWS | ATTACKS).items() if name.startswith(word.strip())}
        if not found:
            faults = ", ".join(sorted({row.fault for row in (ROWS | ATTACKS).values()}))
            raise ValueError(f"--faults: no fault begins with {word!r}; expected one of {faults}")
        chosen |= found
    return list(chosen.values())


def has_clock() -> bool:
    return faketime() is not None
