"""Results in a database, exactly once: `python examples/sqlite_app.py redis://127.0.0.1:6379/0 volume.db`.

It needs only `pip install tickbus`. It sums the traded size per symbol. The database's own transaction
contains the sums together with the position they were built from, and that position decides: an entry at or
below it is already in the sums. The commit to Redis follows, so that the next start does not begin too
early. Start it as often as you like with the same file; kill any process at any time.
"""

import asyncio
import sqlite3
import sys
from decimal import Decimal

import tickbus
from tickbus import StreamId, Trade

TABLE = (
    "CREATE TABLE IF NOT EXISTS volume (stream TEXT PRIMARY KEY, traded TEXT, trades INTEGER, position TEXT)"
)
READ = "SELECT traded, trades, position FROM volume WHERE stream = ?"
WRITE = "INSERT OR REPLACE INTO volume VALUES (?, ?, ?, ?)"


def store(database: sqlite3.Connection, batch: tickbus.Batch) -> None:
    database.execute("BEGIN IMMEDIATE")  # nobody else writes between the reads and writes below
    for stream, id, message in batch:  # includes Gaps
        traded, trades, position = database.execute(READ, (stream.name,)).fetchone() or ("0", 0, "0-0")
        if id > StreamId.parse(position):
            if isinstance(message, Trade):
                traded, trades = str(Decimal(traded) + message.size), trades + 1
            database.execute(WRITE, (stream.name, traded, trades, str(id)))
    database.execute("COMMIT")


async def main(url: str, file: str) -> None:
    database = sqlite3.connect(file, timeout=30, isolation_level=None)
    database.execute(TABLE)
    async with tickbus.connect(url) as bus:
        async for batch in bus.consume("volume"):
            store(database, batch)
            await batch.commit()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
