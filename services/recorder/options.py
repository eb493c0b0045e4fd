"""The recorder's options."""

from pathlib import Path
from typing import Annotated

from tickbus.durable import DEFAULT_UMASK
from tickbus.reader.reader import FROM_START
from tickbus.service.options import MirrorGroups, Option, OwnerOptions, Umask
from tickbus.units import SECOND, Duration, Size


class Options(OwnerOptions, frozen=True, kw_only=True):
    mirror_groups: MirrorGroups = False
    data_dir: Annotated[Path, Option("folder of the files, shared by all replicas; created if missing")] = (
        Path("data")
    )
    umask: Umask = DEFAULT_UMASK
    flush_interval: Annotated[
        Duration, Option("commit rows after at most this long in memory", minimum=SECOND // 100)
    ] = Duration(10 * SECOND)
    flush_bytes: Annotated[Size, Option("or once they take this much memory", minimum=1 << 16)] = Size(
        64 << 20
    )
    kinds: Annotated[
        tuple[str, ...], Option("what to record: trade, quote, bar, signal; gaps are included with each")
    ] = ("trade", "quote", "bar")
    feeds: Annotated[tuple[str, ...], Option("feeds to record; default all")] = ()
    from_: Annotated[str, Option("where to start without a manifest: start, now or a time")] = FROM_START
    name: Annotated[
        str,
        Option("service name, for members and positions in Redis; processes with one name share the shards"),
    ] = "recorder"
