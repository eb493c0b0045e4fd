"""Ratios, percentiles and pacing of the benchmarks, and how results are printed."""

from benchmarks.figures import Part, Ratio, percentile, table
from benchmarks.pacing import due


def test_ratio_is_the_median_of_the_quotients_of_each_round() -> None:
    part = Part("gateway", "about")
    part.ratio("a / b", [10.0, 90.0, 20.0], [10.0, 10.0, 10.0], wanted=2.5)
    (ratio,) = part.ratios
    assert ratio.samples == (1.0, 9.0, 2.0)
    assert ratio.value == 2.0
    assert ratio.verdict == "wanted >= 2.5: MISSED"


def test_upper_bound_is_met_from_below() -> None:
    assert Ratio("p50", (1.4,), wanted=1.5, at_most=True).verdict == "wanted <= 1.5: met"
    assert Ratio("p50", (1.6,), wanted=1.5, at_most=True).verdict == "wanted <= 1.5: MISSED"
    assert Ratio("p50", (1.6,)).verdict == ""


def test_table_has_a_line_for_every_result() -> None:
    part = Part("reader", "about", notes=["quiet"])
    part.figure("ours", "ticks/s", [1234567.0, 1234568.0, 1234569.0])
    part.ratio("ours / raw", [8.0], [10.0], wanted=0.8)
    lines = table([part]).splitlines()
    assert lines[0] == "reader: about"
    assert lines[1].split() == ["ours", "1,234,568", "ticks/s", "(1,234,567", "..", "1,234,569)"]
    assert lines[2].split() == ["ours", "/", "raw", "0.800", "x", "wanted", ">=", "0.8:", "met"]
    assert lines[3] == "  note: quiet"


def test_percentiles_are_observed_values() -> None:
    ordered = [float(value) for value in range(1, 101)]
    assert percentile(ordered, 0.5) == 51.0
    assert percentile(ordered, 0.99) == 100.0
    assert percentile([7.0], 0.99) == 7.0


def test_pacing_yields_the_exact_count() -> None:
    assert sum(due(1e6, 1000)) == 1000
    assert list(due(1e9, 0)) == []
