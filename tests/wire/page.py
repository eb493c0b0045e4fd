"""docs/wire-format.md, parsed: what an author in another language would read."""

import json
import re
from typing import Any

from support.paths import ROOT

PAGE = (ROOT / "docs" / "wire-format.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Return the text under a heading of any depth, up to the next heading."""
    found = re.search(rf"^#+ {re.escape(title)}\b.*?\n(.*?)(?=^#+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title!r}"
    return found[1]


def table(title: str) -> list[list[str]]:
    """Return the cells of a section's table, without its two header lines."""
    rows = [line.strip("|").split("|") for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in row] for row in rows[2:]]


def examples(title: str) -> list[tuple[str, bytes, list[Any]]]:
    """Return (field name, bytes, array as on the page) of each hex block of a section."""
    found = re.findall(
        r"^```hex (\w+)\n(.*?)^```\n```json\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL
    )
    return [(field, bytes.fromhex(text), json.loads(array)) for field, text, array in found]


def code(language: str, title: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL)
    assert found, f"no {language} in {title!r}"
    return found[1]
