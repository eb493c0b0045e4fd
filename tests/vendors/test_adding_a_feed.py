"""docs/adding-a-feed.md works as printed: its module passes the conformance suite and feeds the bus."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import msgpack
import pytest
from support.paths import ROOT
from support.redis_server import RedisServer, free_port
from support.waiting import until
from vendors import examples
from vendors import test_clients as suite

from services.vendors import VENDORS, Vendor
from services.vendors.feed import Feed

PAGE = (ROOT / "docs" / "adding-a-feed.md").read_text(encoding="utf-8")
MODULE, TINY, SERVER = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def run(source: str, space: dict[str, Any]) -> dict[str, Any]:
    exec(compile(source, "docs/adding-a-feed.md", "exec"), space)
    return space


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> type[Feed]:
    """The page's feed, registered together with the page's examples."""
    feed: type[Feed] = run(MODULE, {"__name__": "tiny"})["Tiny"]
    monkeypatch.setitem(VENDORS, "tiny", Vendor(feed))
    monkeypatch.setitem(examples.EXAMPLES, "tiny", run(TINY, dict(vars(examples)))["TINY"])
    return feed


CHECKS: list[tuple[Callable[..., None], dict[str, Any]]] = [
    *((suite.test_golden_frames, {"at": at}) for at in range(2)),
    *((suite.test_numbers_keep_their_digits, {"text": text}) for text in suite.EXACT),
    *((suite.test_invalid_number_is_rejected, {"text": text}) for text in suite.NOT_NUMBERS),
    *(
        (check, {})
        for check in (
            suite.test_trades_carry_the_newest_quote,
            suite.test_fresh_mapper_has_no_quotes_until_it_follows_another,
            suite.test_unsubscribed_symbols_are_rejected_but_not_lost,
            suite.test_time_ahead_of_the_clock_is_flagged,
            suite.test_every_price_equals_the_number_sent,
            suite.test_negative_size_is_rejected_but_negative_price_is_not,
            suite.test_rejected_quote_keeps_the_previous_best_quote,
            suite.test_any_bytes_are_handled,
            suite.test_address_has_the_vendors_path_and_hides_the_token,
            suite.test_subscribe_frames_are_json_and_name_every_symbol_once,
            suite.test_unsupported_kind_is_a_config_error,
            suite.test_tick_without_symbol_counts_as_lost,
        )
    ),
]


@pytest.mark.parametrize(
    "number", range(len(CHECKS)), ids=[f"{check.__name__} {arguments}" for check, arguments in CHECKS]
)
def test_example_passes_the_conformance_suite(number: int, tiny: type[Feed]) -> None:
    check, arguments = CHECKS[number]
    check(vendor="tiny", **arguments)


def test_example_frames_yield_the_documented_notices(tiny: type[Feed]) -> None:
    for frame, notice in examples.EXAMPLES["tiny"].notices:
        suite.test_frame_without_ticks_yields_the_documented_notice(vendor="tiny", frame=frame, notice=notice)


def test_table_lists_every_public_name_of_a_feed() -> None:
    rows = re.findall(
        r"^\| (`.*?) \| ",
        PAGE.partition("## What a Feed declares")[2].partition("## What a Mapper")[0],
        re.MULTILINE,
    )
    documented = {name for row in rows for name in re.findall(r"`(\w+)[^`]*`", row)}
    inherited = {"topics", "address", "url"}
    assert documented | inherited == {
        name for name in {**vars(Feed), **Feed.__annotations__} if not name.startswith("_")
    }


def test_ticks_of_the_example_vendor_reach_the_bus(redis_server: RedisServer, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "server.py").write_text(SERVER.replace("8765", str(port)))
    (tmp_path / "tiny.py").write_text(MODULE)
    (tmp_path / "run.py").write_text(
        "from tiny import Tiny\nfrom services.cli import main\nfrom services.vendors import VENDORS, Vendor\n"
        'if __name__ == "__main__":\n    VENDORS["tiny"] = Vendor(Tiny)\n    raise SystemExit(main())\n'
    )
    gateway = [
        "gateway",
        "--feed",
        "tiny",
        "--url",
        f"ws://127.0.0.1:{port}",
        "--symbols",
        "BTC-USD",
        "--redis",
        redis_server.url,
    ]
    with (
        Popen([sys.executable, tmp_path / "server.py"]) as server,
        Popen([sys.executable, tmp_path / "run.py", *gateway]) as process,
    ):
        try:
            (key,) = until(
                lambda: list(redis_server.client.scan_iter("tickbus:{*}:trade:tiny:BTC-USD")), 20, "a trade"
            )
            until(lambda: redis_server.client.xlen(key) > 250, 20, "two gaps")
        finally:
            process.terminate()
            code = process.wait(20)
            server.terminate()
    assert code == 0
    entries = [
        (field, msgpack.unpackb(value))
        for _, fields in redis_server.client.xrange(key)
        for field, value in fields.items()
    ]
    first = int(entries[0][1][4])
    ids = [int(message[4]) for field, message in entries if field == b"t"]
    assert ids == [n for n in range(first, ids[-1] + 1) if n % 100]
    assert [(message[5], message[6], message[7]) for field, message in entries if field == b"g"] == [
        (str(n), str(n), 1) for n in range(first, ids[-1]) if n % 100 == 0
    ]
    assert [message[1] for field, message in entries if field == b"t"] == [f"{61000 + n}.50" for n in ids]
