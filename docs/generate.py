"""Writes the pages that are made from the code: `make docs`. A test holds the pages against it."""

from pathlib import Path

from tickbus.monitoring.metrics import METRICS, Metric

METRICS_PAGE = Path(__file__).parent / "metrics.md"

_HEAD = """\
# Metrics

Every service answers on `--metrics-host` and `--metrics-port`: `/metrics` for Prometheus, `/healthz` (the event loop turns)
and `/readyz` (it does its job). This page is made from `shared/tickbus/metrics.py` by `make docs`.

Units are base units; a counter ends in `_total`; a histogram `x` is exposed as `x_bucket`, `x_sum` and `x_count`. No metric
has a label per symbol: `tickbus status` tells the truth per symbol. A target of Prometheus also has the usual `process_...`
and `python_...` metrics.

| metric | kind | unit | labels | meaning |
|---|---|---|---|---|
"""


def metrics_page() -> str:
    return _HEAD + "".join(map(_row, METRICS))


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
    return f"| `{metric.name}` | {metric.kind} | {metric.unit} | {labels} | {metric.meaning} |\n"


if __name__ == "__main__":
    METRICS_PAGE.write_text(metrics_page(), encoding="utf-8")
