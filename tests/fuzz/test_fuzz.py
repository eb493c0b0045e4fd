"""A second of fuzz for each target; `make fuzz` does it for hours with other inputs. And the fuzzer."""

import random
from pathlib import Path

import pytest

from fuzz.engine import Target, attempt, pure, reduced, signature
from fuzz.targets import TARGETS, choose

_FIXED = 20240809
"""The same inputs in every run: a failure here comes from a change, not from luck."""


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_is_handled_as_documented(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    with target.open(tmp_path) as run:
        for iteration in range(1, target.short + 1):
            failure = attempt(target, run, _FIXED, iteration)
            assert failure is None, str(failure)


# the fuzzer


def run_bad(pieces: list[bytes]) -> None:
    if any(b"bad" in piece for piece in pieces):
        raise ValueError("this one is bad")


def make_bad(chance: random.Random) -> list[bytes]:
    return [chance.randbytes(3), b"some bad text", chance.randbytes(9)]


def test_failure_is_reduced_to_the_bytes_that_matter() -> None:
    target = Target("bad", make_bad, lambda folder: pure(run_bad, folder))
    failure = attempt(target, run_bad, 1, 7)
    assert failure is not None
    assert failure.pieces == [b"bad"]
    assert failure.signature == "ValueError this one is bad"
    assert "--targets bad --seed 1 --first 7 --rounds 1" in str(failure)
    assert attempt(target, run_bad, 1, 7, lambda found: found == failure.signature) is None
    assert attempt(target, lambda pieces: None, 1, 7) is None


def test_reduction_keeps_to_the_same_fault() -> None:
    def run(pieces: list[bytes]) -> None:
        raise KeyError("first") if b"ab" in b"".join(pieces) else ValueError("another")

    pieces, error = reduced(run, [b"xxab", b"yy"], KeyError("first"))
    assert (pieces, signature(error)) == ([b"ab"], signature(KeyError("first")))


@pytest.mark.parametrize("name", TARGETS)
def test_input_follows_from_the_seed(name: str) -> None:
    make = TARGETS[name].make
    inputs = [make(random.Random(number)) for number in range(50)]
    assert inputs == [make(random.Random(number)) for number in range(50)]
    assert len({tuple(pieces) for pieces in inputs}) > 10


def test_targets_are_chosen_by_the_prefixes_of_their_names() -> None:
    assert {target.name for target in choose("mapper,spill")} == {
        name for name in TARGETS if name.startswith(("mapper", "spill"))
    }
    assert choose("") == list(TARGETS.values())
    with pytest.raises(ValueError, match="no target begins with 'nothing'"):
        choose("nothing")
