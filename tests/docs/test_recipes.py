"""Recipes of the pages and examples: right for every number that is promised, with every version in use.

`make test-oldest-readers` runs this with the oldest versions (tests/docs/oldest.txt).
"""

import asyncio
import datetime
import decimal
import re
import runpy
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas
import polars
import pytest
from recorder.recorded import MIDNIGHT, NOON, QUOTES, SIGNALS, gap, id_of, open_store, quote, rows, signal
from support.paths import ROOT
from support.redis_server import RedisServer
from support.writing import Writer

from tickbus.protocol.messages import Quote, Side, Trade
from tickbus.protocol.names import Stream

FILES, NOTEBOOK = (ROOT / "docs" / name for name in ("files.md", "notebook.md"))
LARGEST, SMALLEST = "99999999999999999999.999999999999999999", "0.000000000000000001"
TRADES = {
    "SHIB-USDT": [("0.00000001234", "5000000000"), ("0.00000001234", "1000000000000")],
    "PEPE-USDT": [("0.0000000000123456", "420690000000000")],
    "TINY": [(SMALLEST, SMALLEST), (SMALLEST, SMALLEST)],
    "LARGE": [(LARGEST, LARGEST), (LARGEST, LARGEST), (LARGEST, LARGEST)],
    "MIXED": [(LARGEST, SMALLEST), (SMALLEST, LARGEST)],
    "BTC-USDT": [("60000.10", "0.5"), ("61837.63", "0.020000001"), ("61838", "100")],
}
DAY = datetime.date(2024, 8, 8)

# Polars 1 joins the files' dictionaries of symbols; only slower
pytestmark = pytest.mark.filterwarnings("ignore::polars.exceptions.CategoricalRemappingWarning")
if not hasattr(polars.exceptions, "CategoricalRemappingWarning"):
    pytestmark = []  # type: ignore[assignment]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days, several files of both; the first trade of each symbol is of the first day."""
    folder = tmp_path_factory.mktemp("recipes")
    store = open_store(folder / "data")
    for symbol, numbers in TRADES.items():
        for seq, (price, size) in enumerate(numbers, 1):
            time = NOON if seq == 1 else MIDNIGHT
            message = Trade(symbol, price, size, Side(seq % 3), str(seq), time + seq, time + seq + 5)
            store.add_many(rows(Stream("trade", "binance", symbol), [(id_of(seq), message)]))
        store.commit()
    edge = Quote("BTC-USDT", "-" + LARGEST, "1", LARGEST, "1", NOON, NOON)
    store.add_many(rows(QUOTES, [(id_of(1), quote(1)), (id_of(2), edge)]))
    store.add_many(rows(SIGNALS, [(id_of(seq), signal(seq)) for seq in range(1, 6)]))
    store.add_many(rows(Stream("trade", "binance", "QUIET"), [(id_of(1), gap())]))
    store.commit()
    return folder


@pytest.fixture
def here(recording: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recording is the folder `data`, as in the recipes."""
    monkeypatch.chdir(recording)
    return recording


def exact(column: str) -> dict[str, Decimal]:
    """Return volume or value of each symbol, computed the slow and obvious way."""
    with decimal.localcontext(decimal.Context(prec=100)):
        return {
            symbol: sum(
                (
                    Decimal(price) * Decimal(size) if column == "value" else Decimal(size)
                    for price, size in numbers
                ),
                Decimal(),
            )
            for symbol, numbers in TRADES.items()
        }


def assert_close(found: dict[str, float], column: str) -> None:
    """15 digits."""
    expected = {symbol: float(number) for symbol, number in exact(column).items()}
    assert found == pytest.approx(expected, rel=1e-14, abs=0)


def blocks(page: Path, language: str) -> Iterator[str]:
    for text in re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        if not re.search(r"^import ", text, re.MULTILINE):
            yield text


SQL, PYTHON = list(blocks(FILES, "sql")), list(blocks(FILES, "python"))


def fetch(sql: str) -> list[tuple[Any, ...]]:
    return duckdb.connect().execute(sql).fetchall()


def run_python(text: str) -> dict[str, Any]:
    names: dict[str, Any] = {
        "polars": polars, "pandas": pandas, "decimal": decimal, "datetime": datetime, "duckdb": duckdb,
    }  # fmt: skip
    exec(text, names)
    return names


def test_every_block_of_the_page_runs(here: Path) -> None:
    assert len(SQL) == 6 and len(PYTHON) == 5
    for text in SQL:
        # times are not fetched: for those with a zone DuckDB needs pytz
        assert fetch(f"SELECT count(*) FROM ({text})")[0][0] > 0
    for text in PYTHON:
        run_python(text)


def block(blocks: list[str], part: str) -> str:
    (text,) = [text for text in blocks if part in text]
    return text


def test_sums_and_products_of_the_page(here: Path) -> None:
    found = fetch(block(SQL, "AS value"))
    assert_close({symbol: volume for symbol, volume, _ in found}, "volume")
    assert_close({symbol: value for symbol, _, value in found}, "value")
    whole_and_rest = fetch(block(SQL, "AS rest"))
    with decimal.localcontext(decimal.Context(prec=100)):
        assert {symbol: whole + rest for symbol, whole, rest in whole_and_rest} == exact("volume")
    frame = run_python(block(PYTHON, "polars.Float64"))["value"]
    assert_close(dict(zip(frame["symbol"], frame["volume"], strict=True)), "volume")
    assert_close(dict(zip(frame["symbol"], frame["value"], strict=True)), "value")
    assert run_python(block(PYTHON, "decimal"))["value"].to_dict() == exact("value")


def test_details_of_signals_of_the_page(here: Path) -> None:
    mean, small, zero = ("mean", Decimal("60000.25")), ("small", -Decimal(SMALLEST)), ("mean", Decimal(0))
    said = {1: [mean], 2: [mean, small], 3: [mean, small, zero], 5: [mean]}  # the fourth has none
    expected = [(-Decimal(f"4.{seq:06d}1"), *pair) for seq, pairs in said.items() for pair in pairs]
    assert [row[2:] for row in fetch(block(SQL, "details"))] == expected[:1]  # the only start of these
    found = run_python(block(PYTHON, "details"))["details"].collect()
    assert Counter(found.select("value", "detail", "number").rows()) == Counter(expected)


def test_days_and_times_of_the_page(here: Path) -> None:
    first_day = len(TRADES)
    assert fetch(block(SQL, "WHERE date")) == [(first_day,)]
    names = run_python(block(PYTHON, "same_day"))
    assert (len(names["day"]), len(names["same_day"])) == (first_day, first_day)
    utc, ns = fetch(block(SQL, "AS utc"))[0]
    assert utc == datetime.datetime(2024, 8, 8, 12)
    assert ns == NOON + 1 or (duckdb.__version__ < "2" and ns == NOON)


@pytest.mark.parametrize("option", ["", ", hive_types_autocast = 0", ", hive_types = {'date': DATE}"])
def test_date_is_found_as_a_date_and_as_text(here: Path, option: str) -> None:
    query = block(SQL, "WHERE date").replace("hive_partitioning = true", f"hive_partitioning = true{option}")
    assert fetch(query) == [(len(TRADES),)]


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / f"{name}_queries.py"))


def test_duckdb_example(recording: Path) -> None:
    names = example("duckdb")
    connection = names["connect"](str(recording / "data"))
    found = {title: connection.sql(query).fetchall() for title, query in names["QUERIES"].items()}
    bars = found["One-minute bars, from the trades"]
    assert len(bars) == 10
    extremes = {symbol: (low, high) for _, _, symbol, _, low, high, _ in found["Trades per day"]}
    assert extremes["MIXED"] in ((Decimal(SMALLEST),) * 2, (Decimal(LARGEST),) * 2)
    value: dict[str, float] = {}
    for symbol, *_, number in connection.sql(names["MINUTE_BARS"].replace("LIMIT 10", "")).fetchall():
        value[symbol] = value.get(symbol, 0) + number
    assert_close(value, "value")
    with decimal.localcontext(decimal.Context(prec=100)):
        assert {symbol: whole + rest for symbol, whole, rest in found["Volume, exact"]} == exact("volume")
    assert {row[3:] for row in found["Every entry exactly once"]} == {(0, 0)}
    assert len(found["Trades of one day"]) == len(TRADES)


def test_polars_example(recording: Path) -> None:
    names = example("polars")
    trades = names["scan"](str(recording / "data"), "trade")
    bars = names["bars"](trades).collect()
    value: dict[str, float] = {}
    for row in bars.rows(named=True):
        value[row["symbol"]] = value.get(row["symbol"], 0) + row["value"]
    assert_close(value, "value")
    lows = dict(zip(bars["symbol"], bars["low"], strict=True))
    assert (lows["TINY"], lows["LARGE"]) == (Decimal(SMALLEST), Decimal(LARGEST))
    assert names["one_day"](trades).collect()["trades"].sum() == len(TRADES)
    spread = names["spread"](names["scan"](str(recording / "data"), "quote")).collect()
    assert spread["min"].to_list() == [2e20]
    gaps = names["scan"](str(recording / "data"), "gap")
    assert set(names["exactly_once"](trades, gaps).collect()["missing"]) == {0}


def test_pandas_example(recording: Path) -> None:
    names = example("pandas")
    trades = pandas.read_parquet(recording / "data/trade")
    found = names["value"](trades)
    for column in ("volume", "value"):
        assert_close(found[column].to_dict(), column)
        assert names["value_exact"](trades)[column].to_dict() == exact(column)
    assert len(names["one_day"](str(recording / "data"))) == len(TRADES)


@pytest.mark.parametrize("name", ["duckdb", "polars", "pandas"])
def test_example_prints(recording: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    example(name)["main"](str(recording / "data"))
    assert "SHIB-USDT" in capsys.readouterr().out


def notebook(number: int, redis: RedisServer) -> dict[str, Any]:
    """Return the names that a program of the page defines."""
    programs = re.findall(
        r"^```python\n(.*?)^```", NOTEBOOK.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    names: dict[str, Any] = {"__name__": "notebook"}
    exec(programs[number].replace("redis://127.0.0.1:6379/0", redis.url), names)
    return names


async def test_notebook_makes_a_frame_of_messages(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    for symbol in "AB":
        await writer.write(1, 2, symbol=symbol)
    names = notebook(0, redis_server)
    frame = await names["main"]()
    assert frame.sort("symbol").rows() == [
        (symbol, frame["ts_event"][0], Decimal(2), Decimal(1), "buy") for symbol in "AB"
    ]
    assert frame.schema["ts_event"] == polars.Datetime("ns", "UTC")
    assert frame["ts_event"].dt.timestamp("ns").to_list() == [2, 2]
    assert names["frame"]([]).schema == frame.schema
    edge = [Trade("A", number, number, Side.BUY, None, NOON, NOON) for number in (SMALLEST, LARGEST)]
    assert names["frame"](edge)["price"].to_list() == [Decimal(SMALLEST), Decimal(LARGEST)]
    writer.close()


async def test_notebook_reads_for_a_while_and_goes_on(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(*range(10))
    names = notebook(1, redis_server)
    first, more = await names["main"]()
    assert ([int(trade.trade_id) for trade in first], more) == (list(range(10)), [])
    import tickbus

    async with tickbus.connect(redis_server.url) as bus:
        trades = bus.read("trade", start="start", gaps=False)
        found: list[Trade] = []
        for numbers in (range(10, 20), range(20, 30)):
            await writer.write(*numbers)
            while int(found[-1].trade_id or 0) < numbers[-1] if found else True:
                found += await names["read_for"](0.2, trades)
        assert [int(trade.trade_id or 0) for trade in found] == list(range(30))
    writer.close()


async def test_notebook_takes_empty_batches(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1, 2)
    names = notebook(2, redis_server)
    async with asyncio.timeout(30):
        assert await names["main"](4) == [("A", "1"), ("A", "2")]
        assert await names["main"](3) == []
    writer.close()
