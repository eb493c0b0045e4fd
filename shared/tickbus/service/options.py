"""Typed configuration: an option is declared once, as a field of a frozen class, and becomes a flag
(`--metrics-port`), an environment variable (`TICKBUS_METRICS_PORT`) and a TOML key (`metrics_port`): see
tickbus.service.load_options.

    class Options(CommonOptions, frozen=True, kw_only=True):
        grace: Annotated[Duration, Option("wait this long for late trades")] = Duration(2 * SECOND)

Types: str, int, bool, Duration, Size, Path, Literal[...], tuple[str, ...] (commas), each also `| None`.
"""

from typing import Annotated, Literal

import msgspec

from tickbus.protocol.names import DEFAULT_PREFIX, DEFAULT_SHARDS
from tickbus.units import HOUR, MILLISECOND, SECOND, Duration, Size
from tickbus.writer.replay_buffer import Window
from tickbus.writer.retention_policy import Retention


class Option(msgspec.Struct, frozen=True):
    """The description of an option."""

    help: str
    """Text for `--help`."""
    secret: bool = False
    """Whether it can also be read from a file, and is never shown."""
    minimum: int | None = None
    """Limits of a number."""
    maximum: int | None = None
    group: str = ""
    """Heading in `--help`; empty: the common one."""
    selects_group: bool = False
    """Whether its value names the only group that applies: `--help` leaves out the others."""


class CommonOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of every command."""

    redis: Annotated[
        str,
        Option(
            "Redis or Valkey >= 7: redis://[user:password@]host:port/db, rediss:// (TLS; ?ssl_ca_certs=FILE) "
            "or unix://path; redis+sentinel://[user:password@]host:port,host:port/<master name>/db"
            "[?sentinel_password=...&sentinel_username=...]; "
            "redis+cluster://[user:password@]host:port,host:port; with TLS rediss+sentinel://, rediss+cluster://",
            secret=True,
        ),
    ] = "redis://127.0.0.1:6379/0"
    prefix: Annotated[str, Option("prefix of every key on the bus")] = DEFAULT_PREFIX
    shards: Annotated[
        int, Option("number of shards; fixed by the first process that uses a bus", minimum=1, maximum=1000)
    ] = DEFAULT_SHARDS
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Option("lowest level that is logged to standard error")
    ] = "info"


class ServiceOptions(CommonOptions, frozen=True, kw_only=True):
    """Further options of every long-running service."""

    metrics_host: Annotated[
        str, Option("address for /metrics, /healthz and /readyz; 0.0.0.0 in a container")
    ] = "127.0.0.1"
    metrics_port: Annotated[
        int, Option("port for these; 0 picks a free one, -1 disables them", minimum=-1, maximum=65535)
    ] = 0
    stop_deadline: Annotated[Duration, Option("time limit after SIGTERM for writing what is buffered")] = (
        Duration(10_000_000_000)
    )


class OwnerOptions(ServiceOptions, frozen=True, kw_only=True):
    """Further options of services whose work must be owned by one process at a time."""

    lease_ttl: Annotated[
        Duration,
        Option(
            "a process that has not renewed its lease for this long may be replaced",
            minimum=100 * MILLISECOND,
        ),
    ] = Duration(3 * SECOND)


class WriterOptions(OwnerOptions, frozen=True, kw_only=True):
    """Further options of services that write streams of their own."""

    retention: Annotated[
        Duration, Option("age at which entries are removed from the streams", minimum=SECOND)
    ] = Duration(24 * HOUR)
    retention_entries: Annotated[int, Option("maximum entries per stream", minimum=1)] = 1_000_000
    retention_bytes: Annotated[
        Size, Option("memory in Redis for all streams of this service together; 0 = no limit")
    ] = Size(0)
    replay_window: Annotated[
        Duration, Option("keep acknowledged entries this long, to resend them if Redis loses them")
    ] = Duration(30 * SECOND)
    replay_bytes: Annotated[Size, Option("memory limit for them")] = Size(64 << 20)
    retention_interval: Annotated[
        Duration, Option("how often retention is enforced", minimum=100 * MILLISECOND)
    ] = Duration(30 * SECOND)

    @property
    def retention_policy(self) -> Retention:
        return Retention(
            self.retention, self.retention_entries, self.retention_bytes, self.retention_interval
        )

    @property
    def replay_buffer(self) -> Window:
        return Window(self.replay_window, self.replay_bytes)


Umask = Annotated[
    str, Option("permissions that new files and folders do not get, octal; 027: files 0640, folders 0750")
]
"""For a service that writes files: `umask: Umask = DEFAULT_UMASK` (tickbus.durable)."""

MirrorGroups = Annotated[
    bool, Option("show positions as Redis consumer groups too, for tools that know only these")
]
"""For a consumer service: `mirror_groups: MirrorGroups = False`."""
