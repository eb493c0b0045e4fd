"""`make soak`: random mixes of faults from a seed, for a given time; a table at the end. See
docs/faults.md.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

from faults.plan import alone, draw
from faults.rows import choose, has_clock
from faults.run import Outcome, run_round
from faults.table import Total, show


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="begin no round after this time (default 5)"
    )
    parser.add_argument("--rounds", type=int, default=0, help="run this many rounds instead")
    parser.add_argument(
        "--seed",
        type=int,
        default=random.SystemRandom().randrange(1 << 30),
        help="seed of the choice of faults (default random; printed)",
    )
    parser.add_argument(
        "--first", type=int, default=1, help="number of the first round, to repeat a round of an earlier soak"
    )
    parser.add_argument(
        "--faults",
        default="",
        help="prefixes of the faults to choose from, e.g. kill,redis,slow vendor (default all)",
    )
    parser.add_argument(
        "--round",
        type=float,
        metavar="SECONDS",
        help="time in which the faults of a round begin (default 25; with --attack 100)",
    )
    parser.add_argument("--rate", type=int, help="ticks per second (default 600; with --attack 2000)")
    parser.add_argument(
        "--attack", action="store_true", help="choose from the attacks: like --faults attack, in long rounds"
    )
    parser.add_argument(
        "--folder", type=Path, help="folder for logs and ledgers (default a new temporary folder)"
    )
    parser.add_argument("--json", type=Path, help="write the result to this file too")
    parser.add_argument(
        "--alone",
        action="store_true",
        help="run gateways and the app only, without bars, recorders and relays",
    )
    parser.add_argument("--list", action="store_true", help="list the faults and exit")
    parser.add_argument(
        "--stop-at-first", action="store_true", help="stop after the first round with a violation"
    )
    arguments = parser.parse_args()
    attack = arguments.attack
    arguments.faults = arguments.faults or ("attack" if attack else "")
    arguments.round = arguments.round or (100.0 if attack else 25.0)
    arguments.rate = arguments.rate or (2_000 if attack else 600)
    return arguments


def main() -> int:
    arguments = options()
    try:
        rows = choose(arguments.faults)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.list:
        print("\n".join(f"{row.name:24} {row.expected}".rstrip() for row in rows))
        return 0
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="tickbus-soak-"))
    clock = has_clock()
    clock_note = "" if clock else ", no clock steps (faketime is not installed)"
    print(f"seed {arguments.seed}, {len(rows)} faults{clock_note}; logs and ledgers in {folder}", flush=True)
    total = Total(arguments.seed)
    planned: Counter[str] = Counter()
    number = 1
    while (
        (number < arguments.first + arguments.rounds)
        if arguments.rounds
        else (time.monotonic() - total.began < arguments.minutes * 60)
    ):
        plan = draw(
            rows, arguments.seed, number, planned, seconds=arguments.round, rate=arguments.rate, clock=clock
        )
        if arguments.alone:
            plan = alone(plan)
        planned.update(one.row.name for one in plan.injections)
        number += 1
        if number <= arguments.first:
            continue  # it is drawn all the same: the plan of a round depends on those before it
        where = folder / f"round-{number - 1}"
        print(f"round {number - 1}: {plan.shape}, {len(plan.injections)} faults", flush=True)
        outcome = run_round(where, plan, partial(_print_event, time.monotonic()))
        total.add(number - 1, outcome)
        _print_outcome(outcome, where)
        if not outcome.result.verdicts:
            shutil.rmtree(where)
        elif arguments.stop_at_first:
            break
    show(total, rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(total.as_json(), indent=1))
    if total.violations:
        print(f"VIOLATIONS in rounds {sorted(total.violations)}: logs and ledgers in {folder}")
        return 1
    if arguments.folder is None:
        shutil.rmtree(folder)
    return 0


def _print_event(began: float, text: str) -> None:
    print(f"  {time.monotonic() - began:6.1f} {text}", flush=True)


def _print_outcome(outcome: Outcome, where: Path) -> None:
    result = outcome.result
    print(
        f"  -> {result.sent} ticks sent, {result.lost} lost silently, {result.doubled} doubled, "
        f"{result.reported} reported as gaps; recovered within {outcome.slowest:.1f} s ({outcome.after})",
        flush=True,
    )
    for verdict in result.verdicts[:20]:
        print(f"  !! {verdict}", flush=True)
    if result.verdicts:
        (where / "verdicts.txt").write_text("\n".join(map(str, result.verdicts)))


if __name__ == "__main__":
    sys.exit(main())
