"""A program that wants and drops symbols at random, with several holders, until it is told `settle`.

After that it keeps what it wants then, and prints it as a JSON list.
"""

import argparse
import json
import random
import sys
import threading
from collections.abc import Collection

import tickbus
from support.processes import Process

SYMBOL = "W{:03d}-USDT"


class Churn(Process):
    command = [sys.executable, "-m", "support.churning"]

    def settle(self) -> list[str]:
        """End the churn. Return what is wanted from now on."""
        self.send_line("settle")
        return list(json.loads(self.wait_for(r"(?m)^(\[.*\])$")[1]))


def churn(redis: str, feed: str, first: int, count: int, seed: int, holders: int) -> None:
    rng, settled = random.Random(seed), threading.Event()

    def listen() -> None:
        sys.stdin.readline()
        settled.set()

    threading.Thread(target=listen, daemon=True).start()
    symbols = [SYMBOL.format(number) for number in range(first, first + count)]
    bus = tickbus.connect(redis)
    wants = [
        bus.want("trade", symbols=[rng.choice(symbols)], feed=feed, name="churn", lease="2s")
        for _ in range(holders)
    ]
    for want in wants:
        want.open()
    print("churning", flush=True)
    wanted: list[set[str]] = [set() for _ in wants]
    while not settled.is_set():
        for want, mine in zip(wants, wanted, strict=True):
            some: Collection[str] = rng.sample(symbols, rng.randint(1, min(20, count)))
            if rng.random() < 0.5:
                want.add(some)
                mine |= set(some)
            else:
                want.drop(some)
                mine -= set(some)
        settled.wait(rng.random() * 0.2)
    for want, mine in zip(wants, wanted, strict=True):
        want.drop(symbols)
        want.add(sorted(mine))
    print(json.dumps(sorted(set().union(*wanted))), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", required=True)
    parser.add_argument("--feed", default="binance")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--holders", type=int, default=3)
    options = parser.parse_args()
    churn(options.redis, options.feed, options.first, options.count, options.seed, options.holders)
