"""The pages that are made from the code say what the code says."""

import re

import tickbus
import tickbus.service
from docs.generate import API_PAGE, METRICS_PAGE, api_page, metrics_page


def test_generated_pages_are_up_to_date() -> None:
    assert METRICS_PAGE.read_text(encoding="utf-8") == metrics_page(), "run `make docs`"
    assert API_PAGE.read_text(encoding="utf-8") == api_page(), "run `make docs`"


def test_every_public_name_has_a_section() -> None:
    names = {*tickbus.__all__, *tickbus.service.__all__} - {"__version__", "Message"}
    assert set(re.findall(r"^### `(\w+)`$", api_page(), re.MULTILINE)) == names


def test_methods_that_a_class_inherits_have_a_section_too() -> None:
    bus = api_page().partition("### `Bus`")[2].partition("\n### ")[0]
    own = {name for name in dir(tickbus.Bus) if not name.startswith("_")}
    assert set(re.findall(r"^#### `(\w+)`$", bus, re.MULTILINE)) == own
