"""The program in a shell: outputs that cannot be written, readers that stop early."""

import subprocess
import sys

import pytest

TICKBUS = f"{sys.executable} -m services.cli"


@pytest.mark.parametrize("arguments", ["--help", "--version", "tail --help", "status --help"])
@pytest.mark.parametrize(
    ("output", "code", "stderr"),
    [
        (" | true", 0, ""),
        (" >/dev/full", 1, "tickbus: cannot write to standard output: No space left on device\n"),
        (" >&-", 1, "tickbus: standard output is closed: open it, or redirect it to a file\n"),
    ],
)
def test_unwritable_output_is_one_error_and_a_closed_pipe_is_none(
    arguments: str, output: str, code: int, stderr: str
) -> None:
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {TICKBUS} {arguments}{output}"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (code, "", stderr)


def test_usage_lists_the_commands_and_a_misspelled_one_is_refused() -> None:
    shown = subprocess.run([*TICKBUS.split()], capture_output=True, text=True, timeout=20, check=True).stdout
    assert "usage: tickbus COMMAND [options]" in shown and "  gateway " in shown
    result = subprocess.run(
        [*TICKBUS.split(), "gatway"], capture_output=True, text=True, timeout=20, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert (
        result.stderr.startswith("tickbus: unknown command 'gatway': expected one of demo, gateway,")
        and len(result.stderr.splitlines()) == 1
    )
