"""deploy/check_stack.py against a real Prometheus that scrapes a process with all of our metrics."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from support.redis_server import free_port, require_program
from support.waiting import until

from deploy.check_stack import expressions, problems
from tickbus.monitoring.meters import Meters
from tickbus.monitoring.metrics import METRICS


@contextmanager
def exporter(fill: Callable[[Meters], None]) -> Iterator[int]:
    """Serve a /metrics that `fill` updates before every scrape, and yield its port."""
    meters = Meters(CollectorRegistry())

    class Collector:
        def collect(self) -> Iterator[object]:
            fill(meters)
            yield from meters.registry.collect()

    server, thread = start_http_server(0, addr="127.0.0.1", registry=Collector())  # type: ignore[arg-type]
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def fill_everything(meters: Meters) -> None:
    """Record a sample in every metric."""
    for metric in METRICS:
        labels = ["x"] * len(metric.labels)
        child = getattr(meters, metric.kind)(metric)
        child = child.labels(*labels) if labels else child
        {"counter": lambda c: c.inc(), "gauge": lambda c: c.set(1), "histogram": lambda c: c.observe(0.01)}[
            metric.kind
        ](child)


@contextmanager
def prometheus(folder: Path, *targets: int) -> Iterator[str]:
    path = require_program("prometheus")
    addresses = ", ".join(f'"127.0.0.1:{port}"' for port in targets)
    config = folder / "prometheus.yml"
    config.write_text(
        "scrape_configs: [{job_name: tickbus, scrape_interval: 1s, "
        f"static_configs: [{{targets: [{addresses}]}}]}}]\n",
        encoding="utf-8",
    )
    address = f"127.0.0.1:{free_port()}"
    command = [
        path,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield f"http://{address}"
        finally:
            process.terminate()


def test_every_dashboard_expression_has_data_where_all_metrics_exist(tmp_path: Path) -> None:
    with exporter(fill_everything) as port, prometheus(tmp_path, port) as url:
        until(lambda: not problems(url), 30, "no problems")


def test_missing_data_and_dead_targets_are_named(tmp_path: Path) -> None:
    dead = free_port()
    with exporter(lambda meters: None) as port, prometheus(tmp_path, port, dead) as url:
        until(
            lambda: any(f"127.0.0.1:{dead}/metrics is down" in line for line in problems(url)),
            20,
            "the dead target is reported",
        )
        lines = problems(url)
        assert [line for line in lines if line.startswith("no data: ")] == [
            f"no data: {place}: {text.replace('$__rate_interval', '30s')}" for place, text in expressions()
        ]
        assert not any(f"127.0.0.1:{port}/" in line and "down" in line for line in lines)
