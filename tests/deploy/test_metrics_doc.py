"""The list in tickbus.monitoring.metrics is the truth: the page, the dashboards and Prometheus' configuration are held against it."""

import json
import re

import pytest

from deploy.check_stack import DASHBOARDS, Expression, expressions
from docs.generate import METRICS_PAGE, metrics_page
from tickbus.monitoring.metrics import METRICS, Metric

BY_NAME = {metric.name: metric for metric in METRICS}
EXPRESSIONS = list(expressions())
FROM_PROMETHEUS = {"le", "instance", "job"}
"""Labels that no metric declares."""


def metrics_in(expr: str) -> list[tuple[str, Metric | None]]:
    """Each name of ours in a PromQL expression, with its metric: a histogram by the names of its series only."""
    found = []
    for name in re.findall(r"\btickbus_\w+", expr):
        metric = BY_NAME.get(name)
        series = BY_NAME.get(re.sub(r"_(bucket|sum|count)$", "", name))
        if metric is None and series is not None and series.kind == "histogram":
            metric = series
        elif metric is not None and metric.kind == "histogram":
            metric = None
        found.append((name, metric))
    return found


def test_the_page_is_what_the_code_says() -> None:
    assert METRICS_PAGE.read_text(encoding="utf-8") == metrics_page(), "run `make docs`"


def test_names_follow_prometheus_conventions() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"tickbus_[a-z0-9]+(_[a-z0-9]+)*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert (metric.unit == "seconds") == metric.name.endswith("_seconds"), metric.name
        assert (metric.unit == "bytes") == metric.name.removesuffix("_total").endswith("_bytes"), metric.name
        assert (metric.kind == "histogram") == bool(metric.buckets), metric.name
        assert "symbol" not in metric.labels
    assert len(BY_NAME) == len(METRICS)


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda expression: expression.place)
def test_an_expression_names_only_our_metrics_and_their_labels(expression: Expression) -> None:
    found = metrics_in(expression.text)
    assert found
    for name, metric in found:
        assert metric is not None, f"{name} is no metric of ours"
        grouped = {
            label
            for labels in re.findall(r"\bby \(([^)]*)\)", expression.text)
            for label in labels.split(", ")
        }
        matched = set(re.findall(r"[{,]\s*(\w+)\s*(?:=|!)", expression.text))
        assert grouped | matched <= set(metric.labels) | FROM_PROMETHEUS, name


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda expression: expression.place)
def test_a_counter_is_read_as_a_rate(expression: Expression) -> None:
    for name, metric in metrics_in(expression.text):
        if metric is not None and metric.kind != "gauge":
            assert re.search(rf"\b(rate|increase)\({name}\[", expression.text), (
                "only a gauge means something by its value"
            )


def test_dashboards_can_be_linked_to_and_find_their_data() -> None:
    uids = []
    for path in DASHBOARDS.glob("*.json"):
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        uids.append(dashboard["uid"])
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids)
        sources = {
            target["datasource"]["uid"]
            for panel in dashboard["panels"]
            for target in panel.get("targets", ())
        }
        assert sources == {"prometheus"}
    assert uids
    assert len(set(uids)) == len(uids)
    provisioned = (DASHBOARDS.parent / "provisioning" / "datasources" / "prometheus.yml").read_text(
        encoding="utf-8"
    )
    assert re.search(r"^\s+uid: prometheus$", provisioned, re.MULTILINE)
