"""Whether a running stack can be seen: every target of Prometheus is up, and every expression of the dashboards has data.

    python3 deploy/check_stack.py http://127.0.0.1:9090 --wait 60

Needs nothing but Python. Exit code 1, and a line for each target and expression that is amiss, if they are still amiss after
the wait: rates need two scrapes, so a stack that has just started needs some seconds.
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
    """All PromQL of all dashboards, as it stands there."""
    for path in sorted(folder.glob("*.json")):
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                yield Expression(f"{path.name}: {panel['title']}", target["expr"])


def amiss(prometheus: str) -> list[str]:
    """A line for each target that is down and each expression without a number; one line if Prometheus does not answer."""
    try:
        return [*_targets_amiss(prometheus), *_expressions_amiss(prometheus)]
    except urllib.error.HTTPError as error:
        # 400: the expression is malformed, and the answer says where; 503: it is still starting
        return [f"{error.url}: {error.read().decode()}"]
    except OSError as error:
        return [f"{prometheus}: {error}"]


def _targets_amiss(prometheus: str) -> Iterator[str]:
    targets = _ask(prometheus, "targets", state="active")["activeTargets"]
    if not targets:
        yield "Prometheus has no targets"
    for target in targets:
        if target["health"] != "up":
            yield f"target {target['scrapeUrl']} is {target['health']}: {target['lastError']}"


def _expressions_amiss(prometheus: str) -> Iterator[str]:
    for expression in expressions():
        # Grafana's own variable: at least four scrapes
        text = expression.text.replace("$__rate_interval", "30s")
        samples = _ask(prometheus, "query", query=text)["result"]
        if all(math.isnan(float(sample["value"][1])) for sample in samples):
            yield f"no data: {expression.place}: {text}"


def _ask(prometheus: str, what: str, **parameters: str) -> dict[str, Any]:
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
        "--wait", type=float, default=0, metavar="SECONDS", help="try again for so long (default 0)"
    )
    given = parser.parse_args()
    deadline = time.monotonic() + given.wait
    while (lines := amiss(given.prometheus)) and time.monotonic() < deadline:
        time.sleep(1)
    for line in lines:
        print(line, file=sys.stderr)
    if not lines:
        print(f"all targets up, data for all {len(list(expressions()))} expressions of the dashboards")
    return 1 if lines else 0


if __name__ == "__main__":
    raise SystemExit(main())
