"""The choice of faults: it follows from the seed alone, and every row gets its share."""

from collections import Counter

import pytest
from support.paths import ROOT

from faults.plan import Round, draw
from faults.rows import ATTACKS, ROWS, choose


def drawn(seed: int, rounds: int) -> list[Round]:
    planned: Counter[str] = Counter()
    plans = []
    for number in range(1, rounds + 1):
        plans.append(draw(list(ROWS.values()), seed, number, planned, seconds=20, rate=500, clock=True))
        planned.update(one.row.name for one in plans[-1].injections)
    return plans


def test_the_same_seed_gives_the_same_plan() -> None:
    assert drawn(1, 5) == drawn(1, 5)
    assert drawn(1, 5) != drawn(2, 5)


def test_every_row_is_drawn_about_equally_often() -> None:
    counts = Counter(one.row.name for plan in drawn(3, 120) for one in plan.injections)
    short = {name: counts[name] for name, row in ROWS.items() if row.seconds[1] < 20}
    assert min(short.values()) >= max(short.values()) / 2
    assert min(counts[name] for name in ROWS) >= max(short.values()) / 8


def test_rows_are_chosen_by_the_prefixes_of_their_names() -> None:
    assert {row.name for row in choose("kill-9,redis-oom")} == {
        "kill-9 gateway",
        "kill-9 bars",
        "kill-9 recorder",
        "kill-9 app",
        "kill-9 relay",
        "redis-oom",
    }
    assert choose("") == list(ROWS.values())
    with pytest.raises(ValueError, match="no fault begins with 'kil-9'"):
        choose("kil-9")


def test_attacks_are_chosen_by_name_only_and_get_an_attacker() -> None:
    assert not ATTACKS.keys() & ROWS.keys()
    chosen = choose("attack")
    assert chosen == list(ATTACKS.values())
    assert draw(chosen, 1, 1, {}, seconds=20, rate=500, clock=False).shape.attacked
    assert not draw(choose(""), 1, 1, {}, seconds=20, rate=500, clock=False).shape.attacked


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_documented_with_what_is_expected(name: str) -> None:
    page = (ROOT / "docs" / "faults.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith(f"| `{ATTACKS[name].fault}` |"))
    assert line.endswith(f"| {ATTACKS[name].expected} |")
