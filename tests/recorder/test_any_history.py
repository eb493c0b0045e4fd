"""Any sequence of reads, commits, failures, deaths and successors leaves each row in the files once, and
each file in order; even if the bus loses, at any moment, everything that was read.
"""

import errno
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from recorder.recorded import BTC, ETH, MIDNIGHT, NOON, files_of, gap, id_of, rows, rows_of, trade

from services.recorder.shard_store import ShardStore
from tickbus.errors import Fenced
from tickbus.protocol.messages import Gap, Trade
from tickbus.protocol.names import START, Stream

STEPS = ("written", "fsynced", "committed", "durable", "named", "done", "forgotten")


class Dead(BaseException):
    """The process is gone: nothing after this instruction happens, no cleanup either."""


class History(RuleBasedStateMachine):
    """A bus with two streams, and stores that read it from their recovered position."""

    def __init__(self) -> None:
        super().__init__()
        self.data_dir = Path(tempfile.mkdtemp(prefix="tickbus-history-"))
        self.bus: dict[Stream, list[Trade | Gap]] = {BTC: [], ETH: []}
        self.failure: tuple[str, BaseException] | None = None
        self.lost: dict[Stream, int] = {BTC: 0, ETH: 0}
        """How many entries of each stream are no longer on the bus."""
        self.read_to: dict[Stream, int] = {BTC: 0, ETH: 0}
        """Up to where any store has read and spooled."""
        self.paused: list[ShardStore] = []

    def step(self, name: str) -> None:
        if self.failure and self.failure[0] == name:
            (_, error), self.failure = self.failure, None
            raise error

    @initialize()
    def start(self) -> None:
        self.store = ShardStore(self.data_dir, "07", step=self.step)
        positions = self.store.recover()
        for stream in self.bus:
            self.read(self.store, stream, positions.get(stream.name, START).seq - 2)

    def read(self, store: ShardStore, stream: Stream, start: int) -> None:
        """Read once what the bus has from there."""
        begin = max(0, start, self.lost[stream])
        entries = [
            (id_of(seq), message) for seq, message in enumerate(self.bus[stream][begin:], start=begin + 1)
        ]
        if entries:
            store.add_many(rows(stream, entries))
        store.spool()
        self.read_to[stream] = len(self.bus[stream])

    @rule()
    def bus_lost(self) -> None:
        self.lost = dict(self.read_to)

    @rule(
        stream=st.sampled_from([BTC, ETH]),
        times=st.lists(st.sampled_from([NOON, MIDNIGHT - 2, MIDNIGHT]), min_size=1, max_size=4),
        hole=st.booleans(),
    )
    def ticks(self, stream: Stream, times: list[int], hole: bool) -> None:
        messages = self.bus[stream]
        before = len(messages)
        if hole:
            messages.append(gap(time=times[0]))
        messages += [
            trade(len(messages) + number, stream.symbol, time=time) for number, time in enumerate(times)
        ]
        self.read(self.store, stream, before)

    @rule()
    def commit(self) -> None:
        self.store.commit()

    @rule(step=st.sampled_from(STEPS))
    def killed_in_commit(self, step: str) -> None:
        self.failure = (step, Dead())
        try:
            self.store.commit()
        except Dead:
            self.start()
        self.failure = None

    @rule(step=st.sampled_from(STEPS))
    def no_space_in_commit(self, step: str) -> None:
        """The store finds no space; it continues with its buffered rows."""
        self.failure = (step, OSError(errno.ENOSPC, "No space left on device"))
        with suppress(OSError):
            self.store.commit()
        self.failure = None

    @rule(stream=st.sampled_from([BTC, ETH]), cut=st.integers(0, 400))
    def killed_in_write(self, stream: Stream, cut: int) -> None:
        """Some bytes of the last record are on disk; it does not count as read."""
        self.bus[stream].append(trade(len(self.bus[stream]), stream.symbol))
        paths = {path: path.stat().st_size for path in (self.data_dir / "_spool").rglob("*.spool")}
        read_to = dict(self.read_to)
        self.read(self.store, stream, len(self.bus[stream]) - 1)
        self.read_to = read_to
        for path in (self.data_dir / "_spool").rglob("*.spool"):
            if path.stat().st_size != paths.get(path):
                os.truncate(path, max(paths.get(path, 0), path.stat().st_size - cut))
        self.store.close()
        self.start()

    @rule()
    def replaced(self) -> None:
        self.paused.append(self.store)
        self.start()

    @precondition(lambda self: self.paused)
    @rule(reads=st.booleans(), commits=st.booleans())
    def resumed(self, reads: bool, commits: bool) -> None:
        store = self.paused[-1]
        if reads:
            for stream in self.bus:
                self.read(store, stream, 0)
        if commits:
            with suppress(Fenced):
                self.paused.pop().commit()

    @invariant()
    def no_duplicates(self) -> None:
        """No hole either, except for one commit whose files are not all renamed yet: checked at the end."""
        for stream, messages in self.bus.items():
            stored = self.stored(stream)
            assert len(stored) == len(set(stored))
            assert set(stored) <= set(range(1, len(messages) + 1))

    @invariant()
    def each_file_in_order(self) -> None:
        for path in files_of(self.data_dir, "trade"):
            rows = pq.ParquetFile(path).read(["symbol", "seq"]).to_pylist()
            assert rows == sorted(rows, key=lambda row: (row["symbol"], row["seq"]))

    def stored(self, stream: Stream) -> list[int]:
        return sorted(
            row["seq"]
            for kind in ("trade", "gap")
            for row in rows_of(self.data_dir, kind)
            if row["symbol"] == stream.symbol
        )

    def teardown(self) -> None:
        try:
            # rows that only a resumed store had read are in its spool
            self.start()
            while self.store.rows:
                self.store.commit()
            for stream, messages in self.bus.items():
                assert self.stored(stream) == list(range(1, len(messages) + 1))
        finally:
            shutil.rmtree(self.data_dir)


History.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=18,
    deadline=None,
    suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]  # its metaclass is untyped
)
TestAnyHistory = History.TestCase
