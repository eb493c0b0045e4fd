"""What the server itself takes: `redis-benchmark -P 256 -c 1`, XADD of an entry of our size."""

import csv
import io
import shutil
import subprocess

import redis

from benchmarks.frames import FIRST_TIME_MS, MadeTrade
from benchmarks.processes import BenchmarkError
from tickbus.protocol.codec import encode
from tickbus.protocol.messages import Side, Trade
from tickbus.protocol.names import Keys, Stream


def stored_trade(trade: MadeTrade) -> Trade:
    """What the gateway makes of a trade of the made-up market, but for ts_recv."""
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


def program() -> str | None:
    return shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")


def xadds_per_second(client: redis.Redis, trade: MadeTrade, count: int) -> float:
    """Entries a second of one connection with 256 in flight, on an emptied server."""
    found = program()
    if found is None:
        raise BenchmarkError(
            "no redis-benchmark in the path; install it (Debian: apt-get install redis-tools)"
        )
    client.flushall()
    payload = "x" * len(
        encode(stored_trade(trade))
    )  # text of the same length: an argument cannot hold every byte
    key = Keys().stream(Stream("trade", "binance", trade.symbol))
    port = str(client.connection_pool.connection_kwargs["port"])
    command = [
        found,
        "-p",
        port,
        "-P",
        "256",
        "-c",
        "1",
        "-n",
        str(count),
        "--csv",
        "XADD",
        key,
        "*",
        "t",
        payload,
    ]
    rows = list(
        csv.DictReader(
            io.StringIO(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        )
    )
    if client.xlen(key) < count:
        raise BenchmarkError("redis-benchmark stored less than it was told to")
    return float(rows[-1]["rps"])
