"""The most revealing rows of the matrix, several at once in one system. `make soak` runs all of them."""

from pathlib import Path

import pytest

from faults.plan import Injection, Round
from faults.rows import ATTACKS, ROWS
from faults.run import run_round
from faults.system import Shape


def plan(shape: Shape, *rows: tuple[float, str, float]) -> Round:
    """Rows as (when, name of the row, duration), in seconds."""
    return Round(
        shape, tuple(Injection((ROWS | ATTACKS)[name], 0, at, seconds) for at, name, seconds in rows)
    )


SCENARIOS = {
    "kills of every part and of Redis, and a vendor that misbehaves": plan(
        Shape(bars=1, recorders=1),
        (0.0, "kill-9 gateway", 0.4),
        (0.2, "vendor-duplicate", 0.1),
        (0.4, "kill-9 recorder", 0.3),
        (0.6, "kill-9 bars", 0.3),
        (0.8, "kill-9 app", 0.3),
        (1.8, "vendor-reorder", 0.1),
        (2.0, "redis-kill-9", 0.3),
        (3.5, "vendor-corrupt", 0.1),
        (3.6, "vendor-drop", 0.1),
        (4.0, "vendor-close", 0.1),
        (4.5, "kill-15 gateway", 0.3),
        (5.5, "vendor-jump", 0.1),
        (6.0, "vendor-reset", 0.1),
    ),
    "a leader paused past its lease wakes beside its successor, connections stall, Redis loses power": plan(
        Shape(gateways=2, bars=2, recorders=2),
        (0.0, "two-gateways gateway", 4.0),
        (0.5, "kill-9 bars", 1.0),
        (0.7, "pause-1s recorder", 1.0),
        (1.5, "stall redis-app", 1.0),
        (4.5, "stall redis-gateway", 1.5),
        (5.0, "redis-oom", 1.0),
        (6.5, "reset redis-bars", 0.1),
        (7.0, "cut vendor-gateway", 0.2),
        (7.3, "redis-pause-1s", 1.0),
        (9.5, "redis-power-loss", 0.8),
    ),
    "kills, cuts and a drain of the relays, whose clients resume at the other one": plan(
        Shape(bars=0, recorders=0, relays=2),
        (0.0, "kill-9 relay", 1.0),
        (0.5, "vendor-drop", 0.1),
        (1.8, "cut client-relay", 0.5),
        (2.6, "kill-15 relay", 0.5),
        (3.6, "reset redis-relay", 0.1),
        (4.2, "redis-kill-9", 0.3),
        (5.5, "pause-1s relay", 1.0),
        (7.0, "reset client-relay", 0.1),
        (7.5, "stall client-relay", 1.5),
        (9.5, "redis-power-loss", 0.8),
    ),
    "wants that change, and whose holders are killed, while the gateway and Redis are": plan(
        Shape(bars=1, recorders=1),
        (0.0, "want-churn", 12.0),
        (1.5, "kill-9 gateway", 0.4),
        (3.5, "cut vendor-gateway", 0.2),
        (4.0, "vendor-drop", 0.1),
        (5.5, "redis-kill-9", 0.3),
        (8.0, "kill-15 gateway", 0.3),
        (10.0, "redis-pause-1s", 1.0),
    ),
    "a hostile vendor and hostile neighbours in Redis": plan(
        Shape(attacked=True, backlog="4MB"),
        (0.0, "attack-damaged", 0.1),
        (0.3, "attack-types", 0.5),
        (0.6, "attack-repeats", 0.1),
        (1.0, "attack-fragments", 1.0),
        (1.5, "attack-kill-storm", 0.1),
        (2.2, "attack-arrays", 0.1),
        (2.4, "attack-bells", 0.3),
        (2.5, "attack-timeless", 0.1),
        (2.8, "attack-fallen", 0.1),
        (2.9, "attack-heads", 0.3),
        (3.1, "attack-jump", 0.1),
        (3.4, "attack-top", 1.0),
        (3.6, "attack-reset", 0.1),
    ),
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_lost_and_nothing_doubled(name: str, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    outcome = run_round(tmp_path, scenario, print)
    result = outcome.result
    assert result.verdicts == [], "\n".join(map(str, result.verdicts))
    assert (result.lost, result.doubled) == (0, 0)
    assert sum(outcome.injected.values()) == len(scenario.injections)
    assert result.reported > 0, "without missing ticks this run proves nothing"
