"""The ledger: what the simulator sent, in order, and what happened to its connections.

JSON lines; docs/simulator.md has the fields. Lines are buffered and written in batches; `flush` is called
at least once a second and at the end. `sent` means handed to at least one connection: only the client knows
whether it read it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from services.simulator.tick import Tick
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Quote, Side, Trade

_BATCH_LINES = 1000
_SIDES = {Side.BUY: "buy", Side.SELL: "sell", Side.UNKNOWN: None}


class Ledger:
    """Writes the ledger file. Every method raises ConfigError if the file cannot be written."""

    def __init__(self, path: Path) -> None:
        try:
            self._file: BinaryIO = path.open("wb")
        except OSError as error:
            raise ConfigError(f"--ledger {path}: {error.strerror}") from None
        self._path = path
        self._lines: list[dict[str, object]] = []
        self._encoder = msgspec.json.Encoder()
        self._number = 0

    def tick(self, tick: Tick, receivers: Sequence[int], fault: str | None, at: int) -> None:
        """Record a tick. receivers: the numbers of the connections it was handed to. at: wall time, ns."""
        self._number += 1
        line: dict[str, object] = {"n": self._number, "kind": tick.kind, "symbol": tick.symbol}
        time = tick.at
        match tick.message:
            case Trade(price_text=price, size_text=size, side=side, ts_event=time):
                line |= {"id": str(tick.id), "price": price, "size": size, "side": _SIDES[side]}
            case Quote(
                bid_text=bid, bid_size_text=bid_size, ask_text=ask, ask_size_text=ask_size, ts_event=time
            ):
                line |= {
                    "id": str(tick.id),
                    "bid": bid,
                    "bid_size": bid_size,
                    "ask": ask,
                    "ask_size": ask_size,
                }
            case None:
                line["stream"] = tick.recorded_frame.channel if tick.recorded_frame is not None else None
        self._add(
            line | {"ts_event": time, "sent": bool(receivers), "to": receivers, "fault": fault, "at": at}
        )

    def event(self, event: dict[str, object], at: int) -> None:
        """Record an event, which has a key `event` that names it. at: wall time, ns."""
        self._add(event | {"at": at})

    def _add(self, line: dict[str, object]) -> None:
        self._lines.append(line)
        if len(self._lines) >= _BATCH_LINES:
            self._write()

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        try:
            self._file.write(self._encoder.encode_lines(lines))
        except OSError as error:
            raise ConfigError(
                f"--ledger {self._path}: {error.strerror}; free some space or choose another file"
            ) from None

    def flush(self) -> None:
        """Write the buffered lines to disk."""
        self._write()
        try:
            self._file.flush()
        except OSError as error:
            raise ConfigError(
                f"--ledger {self._path}: {error.strerror}; free some space or choose another file"
            ) from None

    def close(self) -> None:
        self.flush()
        self._file.close()
