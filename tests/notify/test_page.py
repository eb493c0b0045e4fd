"""docs/notify.md: what it shows verifies what is sent, and its tables name what the code has."""

import os
import re
import subprocess
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from notify.alerts import KEY, SECRET
from support.paths import ROOT
from support.redis_server import require_program

from services.notify.outcomes import DEAD_REASONS
from services.notify.receiver import _File
from services.notify.signing import signed_headers

PAGE = (ROOT / "docs" / "notify.md").read_text(encoding="utf-8")
BODY = b'{"key":"era:signal:watch:BTC-USDT:1-2","message":"\xc3\xbc"}'
ID = "era:signal:watch:BTC-USDT:1-2"


def block(language: str, part: str) -> str:
    """Return the block of code that contains `part`."""
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (text,) = [text for text in found if part in text]
    return textwrap.dedent(text)


@pytest.mark.parametrize("secrets", [[KEY], [b"new", KEY]])
def test_python_of_the_page_verifies_a_signature(secrets: list[bytes]) -> None:
    names: dict[str, Any] = {}
    exec(block("python", "def is_genuine"), names)
    is_genuine = names["is_genuine"]
    headers = signed_headers(secrets, ID, int(time.time()), BODY)
    assert is_genuine(SECRET, headers, BODY)
    assert not is_genuine(SECRET, headers, BODY + b" ")
    assert not is_genuine("whsec_" + "A" * 44, headers, BODY)
    assert not is_genuine(SECRET, headers | {"webhook-id": ID + "1"}, BODY)
    assert not is_genuine(SECRET, signed_headers(secrets, ID, int(time.time()) - 400, BODY), BODY)


@pytest.mark.parametrize("secrets", [[KEY], [b"new", KEY]])
def test_shell_of_the_page_verifies_a_signature(secrets: list[bytes], tmp_path: Path) -> None:
    require_program("openssl")
    headers = signed_headers(secrets, ID, 1_795_845_600, BODY)
    for body, says in ((BODY, "genuine\n"), (BODY + b" ", "forged\n")):
        (tmp_path / "body").write_bytes(body)
        done = subprocess.run(
            ["sh", "-c", block("sh", "openssl dgst")],
            cwd=tmp_path, capture_output=True, text=True, timeout=20, check=True,
            env={
                "PATH": os.environ["PATH"], "SECRET": SECRET, "ID": headers["webhook-id"],
                "TIMESTAMP": headers["webhook-timestamp"], "SIGNATURE": headers["webhook-signature"],
            },
        )  # fmt: skip
        assert done.stdout == says


def test_every_key_of_the_file_and_every_reason_is_on_the_page() -> None:
    section = PAGE.split("## The receiver")[1].split("\n## ")[0]
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(_File.__struct_fields__)
    reasons = PAGE.split("| `reason` |")[1].splitlines()[0]
    assert tuple(re.findall(r"`(\w+)`", reasons)) == DEAD_REASONS
