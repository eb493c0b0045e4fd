"""`make soak`: random mixes of faults from a seed, for as long as asked; a table at the end. docs/faults.md."""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from faults.plan import alone, draw
from faults.rows import choose, has_clock
from faults.run import Outcome, run_round
from faults.table import Total, show


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="no round begins later than this (default 5)"
    )
    parser.add_argument("--rounds", type=int, default=0, help="so many rounds instead")
    parser.add_argument(
        "--seed",
        type=int,
        default=random.SystemRandom().randrange(1 << 30),
        help="of the choice of faults; printed",
    )
    parser.add_argument(
        "--first", type=int, default=1, help="number of the first round: to run one of a soak again"
    )
    parser.add_argument(
        "--faults",
        default="",
        help="which, by the beginnings of their names, like kill,redis,slow vendor (default all)",
    )
    parser.add_argument(
        "--round",
        type=float,
        default=25.0,
        metavar="SECONDS",
        help="in which the faults of a round begin (default 25)",
    )
    parser.add_argument("--rate", type=int, default=600, help="ticks per second (default 600)")
    parser.add_argument(
        "--folder", type=Path, help="where logs and ledgers go (default a new temporary folder)"
    )
    parser.add_argument("--json", type=Path, help="write the result there too")
    parser.add_argument(
        "--alone", action="store_true", help="gateways and the app only, without bars and recorders"
    )
    parser.add_argument("--list", action="store_true", help="list the faults and end")
    parser.add_argument(
        "--stop-at-first", action="store_true", help="end after the first round with a violation"
    )
    return parser.parse_args()


def main() -> int:
    asked = options()
    try:
        rows = choose(asked.faults)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if asked.list:
        print("\n".join(row.name for row in rows))
        return 0
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="tickbus-soak-"))
    clock = has_clock()
    print(
        f"seed {asked.seed}, {len(rows)} faults{'' if clock else ', without faketime: no steps of the clock'}; logs and ledgers in {folder}",
        flush=True,
    )
    total = Total(asked.seed)
    planned: Counter[str] = Counter()
    number = 1
    while (
        (number < asked.first + asked.rounds)
        if asked.rounds
        else (time.monotonic() - total.began < asked.minutes * 60)
    ):
        plan = draw(rows, asked.seed, number, planned, seconds=asked.round, rate=asked.rate, clock=clock)
        if asked.alone:
            plan = alone(plan)
        planned.update(one.row.name for one in plan.injections)
        number += 1
        if number <= asked.first:
            continue  # drawn all the same: the plan of a round follows from those before
        where = folder / f"round-{number - 1}"
        print(f"round {number - 1}: {plan.shape}, {len(plan.injections)} faults", flush=True)
        began = time.monotonic()
        outcome = run_round(
            where,
            plan,
            lambda text, began=began: print(f"  {time.monotonic() - began:6.1f} {text}", flush=True),
        )
        total.add(number - 1, outcome)
        _tell(outcome, where)
        if not outcome.result.verdicts:
            shutil.rmtree(where)
        elif asked.stop_at_first:
            break
    show(total, rows)
    if asked.json:
        asked.json.write_text(json.dumps(total.as_json(), indent=1))
    if total.violations:
        print(f"VIOLATIONS in rounds {sorted(total.violations)}: logs and ledgers in {folder}")
        return 1
    if asked.folder is None:
        shutil.rmtree(folder)
    return 0


def _tell(outcome: Outcome, where: Path) -> None:
    result = outcome.result
    print(
        f"  -> {result.sent} ticks sent, {result.lost} lost in silence, {result.doubled} doubled, {result.told} told as gaps; "
        f"recovered within {outcome.slowest:.1f} s ({outcome.after})", flush=True,
    )  # fmt: skip
    for verdict in result.verdicts[:20]:
        print(f"  !! {verdict}", flush=True)
    if result.verdicts:
        (where / "verdicts.txt").write_text("\n".join(map(str, result.verdicts)))


if __name__ == "__main__":
    sys.exit(main())
