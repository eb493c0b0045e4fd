"""pandas on the recorder's files: `python examples/pandas_queries.py data`.

Needs `pip install pandas pyarrow`; tried with pandas 2.0 and 3.1, pyarrow 18 and 26.

Prices and sizes are Python Decimals in columns of objects. Python computes with 28 digits unless told
otherwise; with 80, as below, every product and sum is exact. That is slow: for anything large convert to
float first, which has 15 digits at any size.
"""

import decimal
import sys
from pathlib import Path

import pandas

EXACT = decimal.Context(prec=80, traps=[decimal.Inexact])
"""Raises instead of rounding."""


def one_day(data_dir: str, day: str = "2024-08-08") -> pandas.DataFrame:
    """Return the trades of one day: only its folder is read. The column `date` is text here."""
    return pandas.read_parquet(Path(data_dir) / "trade", filters=[("date", "=", day)])


def value(trades: pandas.DataFrame) -> pandas.DataFrame:
    """Return per symbol what was traded, as floats."""
    price, size = trades["price"].astype(float), trades["size"].astype(float)
    found = pandas.DataFrame({"volume": size, "value": price * size})
    return found.groupby(trades["symbol"].astype(str)).agg("sum")


def value_exact(trades: pandas.DataFrame) -> pandas.DataFrame:
    """Return per symbol what was traded, as Decimals."""
    with decimal.localcontext(EXACT):
        found = pandas.DataFrame({"volume": trades["size"], "value": trades["price"] * trades["size"]})
        return found.groupby(trades["symbol"].astype(str)).agg(lambda column: sum(column, decimal.Decimal()))


def main(data_dir: str) -> None:
    if next((Path(data_dir) / "trade").rglob("*.parquet"), None) is None:
        print(f"{data_dir}/trade has no files yet")
        return
    trades = pandas.read_parquet(Path(data_dir) / "trade")
    print(f"Trades of one day\n{one_day(data_dir).tail()}\n")
    print(f"Traded\n{value(trades)}\n")
    print(f"Traded, exact\n{value_exact(trades)}")


if __name__ == "__main__":
    main(*sys.argv[1:2] or ["data"])
