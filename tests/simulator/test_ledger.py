import json
from pathlib import Path

import pytest

from services.simulator.ledger import Ledger
from services.simulator.tick import RecordedFrame, Tick, quote_tick, trade_tick
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Side


def test_lines_are_as_documented(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.jsonl")
    ledger.event({"event": "start"}, 1)
    ledger.tick(trade_tick("trade:A", "A", 7, 0, 5, "1.50", "2", Side.BUY), [1, 2], None, 10)
    ledger.tick(quote_tick("quote:A", "A", 8, 0, 6, "1", "3", None, None), [], "mute", 11)
    ledger.tick(Tick("v:a@depth", "A", 0, 7, None, RecordedFrame("v", "a@depth", b"")), [1], None, 12)
    ledger.close()
    assert [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()] == [
        {"event": "start", "at": 1},
        {"n": 1, "kind": "trade", "symbol": "A", "id": "7", "price": "1.50", "size": "2", "side": "buy",
         "ts_event": 5, "sent": True, "to": [1, 2], "fault": None, "at": 10},
        {"n": 2, "kind": "quote", "symbol": "A", "id": "8", "bid": "1", "bid_size": "3", "ask": None,
         "ask_size": None, "ts_event": 6, "sent": False, "to": [], "fault": "mute", "at": 11},
        {"n": 3, "kind": "other", "symbol": "A", "stream": "a@depth",
         "ts_event": 7, "sent": True, "to": [1], "fault": None, "at": 12},
    ]  # fmt: skip


def test_unwritable_path_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--ledger .*No such file"):
        Ledger(tmp_path / "no" / "folder")
