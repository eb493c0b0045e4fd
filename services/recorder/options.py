"""The recorder's options."""

from pathlib import Path
from typing import Annotated

from tickbus.reader.reader import FROM_START
from tickbus.service.options import MirrorGroups, Option, OwnerOptions
from tickbus.units import SECOND, Duration, Size


class Options(OwnerOptions, frozen=True, kw_only=True):
    mirror_groups: MirrorGroups = False
    data_dir: Annotated[
        Path, Option("folder of the files, the same for all replicas; made if it is not there")
    ] = Path("data")
    flush_interval: Annotated[
        Duration, Option("rows wait this long in memory at most", minimum=SECOND // 100)
    ] = Duration(10 * SECOND)
    flush_bytes: Annotated[Size, Option("or until they take this much", minimum=1 << 16)] = Size(64 << 20)
    kinds: Annotated[
        tuple[str, ...], Option("what to record: trade, quote, bar; the gaps come with each")
    ] = ("trade", "quote", "bar")
    feeds: Annotated[tuple[str, ...], Option("names of the feeds to record; default all")] = ()
    from_: Annotated[str, Option("where to begin without a manifest: start, now or a time")] = FROM_START
    name: Annotated[
        str,
        Option(
            "name of this service: its members, and its position as shown in Redis; processes of one name share the work"
        ),
    ] = "recorder"
