"""The command as a shell has it: outputs that cannot be written, readers that have seen enough."""

import subprocess
import sys

import pytest

TICKBUS = f"{sys.executable} -m services.cli"


@pytest.mark.parametrize("arguments", ["--help", "--version", "tail --help", "status --help"])
@pytest.mark.parametrize(
    ("output", "code", "said"),
    [
        (" | true", 0, ""),
        (" >/dev/full", 1, "tickbus: cannot write to the standard output: No space left on device\n"),
        (" >&-", 1, "tickbus: the standard output is closed: nobody would see anything\n"),
    ],
)
def test_what_cannot_be_shown(arguments: str, output: str, code: int, said: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {TICKBUS} {arguments}{output}"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


def test_the_parts_are_shown_and_a_misspelt_one_is_told() -> None:
    shown = subprocess.run([*TICKBUS.split()], capture_output=True, text=True, timeout=20, check=True).stdout
    assert "usage: tickbus PART [options]" in shown and "  gateway " in shown
    done = subprocess.run(
        [*TICKBUS.split(), "gatway"], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr.startswith("tickbus: unknown command 'gatway'; there are demo, gateway,")
        and len(done.stderr.splitlines()) == 1
    )
