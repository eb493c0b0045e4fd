"""A recorder that dies: `python crashing.py ROWS BUS DATA_DIR,PLAN,PLAN... ...`. Each life reads a fixed
market from its resume position on, spools each round and commits piece by piece. The plan of a life is
`step:N`: killed at its Nth step; `ms:N`: killed by a timer at any instruction; or `stop:N`: paused at its
Nth step until the next life has ended or is paused too. The last life in a folder has no plan and finishes
the market. Prints per folder how many lives were killed or paused.

BUS is `there`: a life reads what it asks for, and a bit more; or `lost`: what an earlier life read cannot
be read again.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from tickbus.errors import Fenced
from tickbus.protocol.messages import Message, StreamKind
from tickbus.protocol.names import Stream, StreamId

sys.path.insert(0, str(Path(__file__).parents[1]))
from recorder.recorded import BTC, ETH, MIDNIGHT, QUOTES, UNREPRESENTABLE_PRICE, gap, quote, rows, trade

from services.recorder.shard_store import ShardStore

PIECE = 40
ROUND = 15
"""Entries, of three streams in turn."""
_SIGNALS = {"step": signal.SIGKILL, "stop": signal.SIGSTOP}


def market(count: int) -> Iterator[tuple[Stream, StreamId, Message]]:
    """Trades of two symbols, quotes, Gaps, unrepresentable messages, across midnight: dense counters."""
    for seq in range(1, count + 1):
        time = MIDNIGHT + (seq - count // 2) * 1000
        id = StreamId(MIDNIGHT // 1_000_000 + seq, seq)
        unrepresentable = trade(seq, time=time, price=UNREPRESENTABLE_PRICE)
        regular = unrepresentable if seq % 17 == 0 else trade(seq, time=time)
        yield BTC, id, gap(time=time) if seq % 10 == 0 else regular
        yield ETH, id, trade(seq, "ETH-USDT", time=time)
        yield QUOTES, id, gap(StreamKind.QUOTE, time=time) if seq % 13 == 0 else quote(seq, time=time)


def live(data_dir: Path, count: int, bus: str, plan: str) -> None:
    how, _, number = plan.partition(":")
    remaining = int(number or 0)

    def step(name: str) -> None:
        nonlocal remaining
        remaining -= 1
        if remaining == 0 and how in _SIGNALS:
            os.kill(os.getpid(), _SIGNALS[how])

    if how == "ms":
        # not caught, so the process ends right where it is
        signal.setitimer(signal.ITIMER_REAL, remaining / 1000)
    store = ShardStore(data_dir, "07", step=step)
    positions = store.recover()
    read = os.open(data_dir / "read", os.O_RDWR | os.O_CREAT)
    # three entries back, like a reader that does not know its exact position
    begin = (
        os.fstat(read).st_size if bus == "lost" else min((id.seq for id in positions.values()), default=0) - 3
    )
    entries = [entry for entry in market(count) if entry[1].seq > begin]
    for start in range(0, len(entries), ROUND):
        for stream, id, message in entries[start : start + ROUND]:
            store.add_many(rows(stream, [(id, message)], 1))
        step("added")
        store.spool()
        # from here on it counts as read: the size of this file
        os.pwrite(read, b".", entries[min(start + ROUND, len(entries)) - 1][1].seq - 1)
        step("spooled")
        if store.rows >= PIECE:
            store.commit()
    while store.rows:
        store.commit()
    store.close()


def main() -> None:
    count, bus, *folders = sys.argv[1:]
    # the first array makes pyarrow load numpy and pandas if installed: once here, not in every life
    pa.array([1])
    for folder in folders:
        data_dir, *plans = folder.split(",")
        print(run_lives(Path(data_dir), int(count), bus, plans))


def run_lives(data_dir: Path, count: int, bus: str, plans: list[str]) -> int:
    """Return how many lives were killed or paused."""
    ended, paused = 0, 0
    # one more life after a paused one resumed: it finds what that one left behind
    for plan in [*plans, "", ""] if "stop" in str(plans) else [*plans, ""]:
        child = os.fork()
        if not child:
            with suppress(Fenced):
                live(data_dir, count, bus, plan)
            os._exit(0)
        _, status = os.waitpid(child, os.WUNTRACED)
        if paused:
            os.kill(paused, signal.SIGCONT)
            check(plan, os.waitpid(paused, 0)[1])
        paused = child if os.WIFSTOPPED(status) else 0
        ended += bool(paused) or os.WIFSIGNALED(status)
        check(plan, status)
    return ended


def check(plan: str, status: int) -> None:
    if os.WIFEXITED(status) and status:
        raise SystemExit(f"{plan}: the child ended with {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main()
