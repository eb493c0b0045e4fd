"""Links between the pages, and to the files of the repository, lead somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def text_of(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """As forges make them of headings."""
    titles = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for target in LINK.findall(text_of(page)):
            if not target.startswith(("http://", "https://", "mailto:")):
                yield page, target


LINKS = list(links())


@pytest.mark.parametrize(("page", "target"), LINKS, ids=[f"{page.name} {target}" for page, target in LINKS])
def test_links_lead_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    found = (page.parent / path).resolve() if path else page
    assert found.exists(), f"{page}: {target}"
    if anchor and found.suffix == ".md":
        assert anchor in anchors(found), f"{page}: {target}"


def test_every_page_is_reached_from_readme() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        targets = [target.partition("#")[0] for target in LINK.findall(text_of(page)) if "://" not in target]
        waiting += [
            (page.parent / target).resolve()
            for target in targets
            if target and (page.parent / target).is_file()
        ]
    missing = set((ROOT / "docs").glob("*.md")) - seen
    assert not missing, f"no link leads to {sorted(page.name for page in missing)}"
