"""The limit of the server itself: `redis-benchmark -P 256 -c 1`, XADD of an entry of our size."""

import csv
import io
import shutil
import subprocess

import redis

from benchmarks.frames import FIRST_TIME_MS, SyntheticTrade
from benchmarks.processes import BenchmarkError
from tickbus.protocol.codec import encode
from tickbus.protocol.messages import Side, Trade
from tickbus.protocol.names import Keys, Stream


def stored_trade(trade: SyntheticTrade) -> Trade:
    """Return the gateway's message for a synthetic trade, except for its ts_recv."""
    time = FIRST_TIME_MS * 1_000_000 + 123_456
    return Trade(
        trade.symbol,
        trade.price,
        trade.size,
        Side.SELL if trade.seller else Side.BUY,
        str(trade.id),
        time,
        time,
    )


def find_program() -> str | None:
    return shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")


def xadds_per_second(client: redis.Redis, trade: SyntheticTrade, count: int) -> float:
    """Return the entries per second of one connection with 256 in flight, on an emptied server."""
    program = find_program()
    if program is None:
        raise BenchmarkError(
            "redis-benchmark is not in the PATH; install it (Debian: apt-get install redis-tools)"
        )
    client.flushall()
    # text of the same length: an argument cannot contain every byte
    payload = "x" * len(encode(stored_trade(trade)))
    key = Keys().stream(Stream("trade", "binance", trade.symbol))
    port = str(client.connection_pool.connection_kwargs["port"])
    command = [
        program, "-p", port, "-P", "256", "-c", "1", "-n", str(count), "--csv",
        "XADD", key, "*", "t", payload,
    ]  # fmt: skip
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = list(csv.DictReader(io.StringIO(output)))
    if client.xlen(key) < count:
        raise BenchmarkError(f"redis-benchmark stored fewer than {count:,} entries")
    return float(rows[-1]["rps"])
