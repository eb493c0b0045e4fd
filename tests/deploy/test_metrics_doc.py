"""tickbus.monitoring.metrics is authoritative: the dashboards and Prometheus' configuration must match it."""

import json
import re

import pytest

from deploy.check_stack import DASHBOARDS, Expression, expressions
from tickbus.monitoring.metrics import METRICS, Metric

BY_NAME = {metric.name: metric for metric in METRICS}
EXPRESSIONS = list(expressions())
FROM_PROMETHEUS = {"le", "instance", "job"}
"""Labels that come from Prometheus, so that no metric declares them."""


def metrics_in(expr: str) -> list[tuple[str, Metric | None]]:
    """Return our names in a PromQL expression with their metrics; a histogram only by its series."""
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
def test_expression_uses_only_our_metrics_and_their_labels(expression: Expression) -> None:
    found = metrics_in(expression.text)
    assert found
    for name, metric in found:
        assert metric is not None, f"{name} is not a metric of tickbus"
        grouped = {
            label
            for labels in re.findall(r"\bby \(([^)]*)\)", expression.text)
            for label in labels.split(", ")
        }
        matched = set(re.findall(r"[{,]\s*(\w+)\s*(?:=|!)", expression.text))
        assert grouped | matched <= set(metric.labels) | FROM_PROMETHEUS, name


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda expression: expression.place)
def test_counters_are_read_as_rates(expression: Expression) -> None:
    for name, metric in metrics_in(expression.text):
        if metric is not None and metric.kind != "gauge":
            assert re.search(rf"\b(rate|increase)\({name}\[", expression.text), (
                "only the value of a gauge is meaningful by itself"
            )


def test_dashboards_have_unique_ids_and_the_provisioned_data_source() -> None:
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
    provisioning = DASHBOARDS.parent / "provisioning" / "datasources" / "prometheus.yml"
    assert re.search(r"^\s+uid: prometheus$", provisioning.read_text(encoding="utf-8"), re.MULTILINE)
