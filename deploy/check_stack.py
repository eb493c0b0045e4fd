"""Check that a running stack can be observed: every Prometheus target is up, every dashboard expression has
data.

    python3 deploy/check_stack.py http://127.0.0.1:9090 --wait 60

Needs nothing but Python. Prints a line for each target and expression that still fails after the wait, with
exit code 1. Rates need two scrapes, so a stack that has just started needs some seconds.
"""

import argparse
import json
import math
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DASHBOARDS = Path(__file__).parent / "grafana" / "dashboards"


class Expression(NamedTuple):
    place: str
    """Dashboard and panel, for people."""
    text: str


def expressions(folder: Path = DASHBOARDS) -> Iterator[Expression]:
    """Yield all PromQL expressions of all dashboards, verbatim."""
    for path in sorted(folder.glob("*.json")):
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                yield Expression(f"{path.name}: {panel['title']}", target["expr"])


def problems(prometheus: str) -> list[str]:
    """Return a line for each target that is down and each expression without a number, or one line if
    Prometheus does not answer."""
    try:
        return [*_target_problems(prometheus), *_expression_problems(prometheus)]
    except urllib.error.HTTPError as error:
        # 400: the expression is malformed, and the body says where; 503: Prometheus is still starting
        return [f"{error.url}: {error.read().decode()}"]
    except OSError as error:
        return [f"{prometheus}: {error}"]


def _target_problems(prometheus: str) -> Iterator[str]:
    targets = _query(prometheus, "targets", state="active")["activeTargets"]
    if not targets:
        yield "Prometheus has no targets"
    for target in targets:
        if target["health"] != "up":
            yield f"target {target['scrapeUrl']} is {target['health']}: {target['lastError']}"


def _expression_problems(prometheus: str) -> Iterator[str]:
    for expression in expressions():
        # a variable of Grafana: at least four scrapes
        text = expression.text.replace("$__rate_interval", "30s")
        samples = _query(prometheus, "query", query=text)["result"]
        if all(math.isnan(float(sample["value"][1])) for sample in samples):
            yield f"no data: {expression.place}: {text}"


def _query(prometheus: str, what: str, **parameters: str) -> dict[str, Any]:
    url = f"{prometheus.rstrip('/')}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        data: dict[str, Any] = json.load(answer)["data"]
        return data


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prometheus", nargs="?", default="http://127.0.0.1:9090", metavar="URL")
    parser.add_argument(
        "--wait", type=float, default=0, metavar="SECONDS", help="retry for this long (default 0)"
    )
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.wait
    while (lines := problems(arguments.prometheus)) and time.monotonic() < deadline:
        time.sleep(1)
    for line in lines:
        print(line, file=sys.stderr)
    if not lines:
        print(f"all targets up, data for all {len(list(expressions()))} expressions of the dashboards")
    return 1 if lines else 0


if __name__ == "__main__":
    raise SystemExit(main())
