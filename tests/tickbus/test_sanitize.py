"""What others wrote, made safe to show."""

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickbus.sanitize import Secrets, clean, clean_lines, escape, json_safe

TOKEN = "S3CR3T/T0K3N+42=="


def hiding(secret: str = TOKEN) -> Secrets:
    secrets = Secrets()
    secrets.add(secret)
    return secrets


@pytest.mark.parametrize(
    "form",
    [
        TOKEN,
        TOKEN.lower(),
        quote(TOKEN),
        quote(TOKEN, safe=""),
        quote(TOKEN, safe="").lower(),
        quote(quote(TOKEN, safe="")),
        json.dumps(TOKEN),
        TOKEN.replace("/", "\\/"),
        TOKEN.encode().hex(),
        *(base64.b64encode(before + TOKEN.encode() + b":x").decode() for before in (b"", b"a", b"ab")),
        base64.urlsafe_b64encode(b"user:" + TOKEN.encode()).decode(),
        TOKEN[:12],
        TOKEN[5:],
        repr(TOKEN),
    ],
)
def test_secret_is_hidden_in_every_form(form: str) -> None:
    hidden = hiding().hide(f"GET /quote?token={form}&x=1 no such path")
    assert hidden.startswith("GET /quote?token=")
    assert hidden.endswith("&x=1 no such path")
    assert "***" in hidden
    rest = hidden[len("GET /quote?token=") : -len("&x=1 no such path")].replace("***", "")
    # what is left is too little of it; the user's name is no secret
    assert len(rest.removeprefix("dXNlcj")) < 8


@given(st.text(), st.text(), st.text(alphabet=st.characters(codec="ascii"), min_size=8))
def test_no_long_part_of_a_secret_is_left(before: str, after: str, secret: str) -> None:
    hidden = hiding(secret).hide(before + secret + after)
    assert secret not in hidden.replace("***", "\0")


@given(st.text(alphabet="abc ", max_size=40))
def test_text_without_the_secret_is_unchanged(text: str) -> None:
    assert hiding("SECRETTOKEN42").hide(text) == text


def test_short_secret_is_hidden_as_a_word() -> None:
    secrets = hiding("demo")
    assert secrets.hide("token=demo, demonstration") == "token=***, demonstration"
    assert hiding("t").hide("t is too short to be one") == "t is too short to be one"


@pytest.mark.parametrize(
    ("url", "shown", "hidden"),
    [
        ("redis://:p4ssw0rd!x@h:1/0", "AUTH p4ssw0rd!x failed", "AUTH *** failed"),
        ("redis://u:p4ss%40w0rd@h/0", "AUTH p4ss@w0rd failed", "AUTH *** failed"),
        ("redis+sentinel://h/m?sentinel_password=p4ssw0rd", "p4ssw0rd", "***"),
        ("wss://h/stream?streams=btcusdt@trade&apikey=0123456789", "0123456789 btcusdt", "*** btcusdt"),
        ("http://user:p4ssw0rd@proxy:3128", base64.b64encode(b"user:p4ssw0rd").decode(), "***"),
    ],
)
def test_secrets_of_a_url_are_hidden(url: str, shown: str, hidden: str) -> None:
    secrets = Secrets()
    secrets.add_url(url)
    assert secrets.hide(shown) == hidden


HOSTILE = "ok\r\n2026-01-01 INFO forged\x1b[2J\x9b31m\u202etxt\u2028\x00\ud800\x7f"


def test_one_line_without_anything_invisible() -> None:
    assert escape("Zürich 東京 🙂 a\\b") == "Zürich 東京 🙂 a\\b"
    shown = escape(HOSTILE)
    assert shown == r"ok\r\n2026-01-01 INFO forged\x1b[2J\x9b31m\u202etxt\u2028\x00\ud800\x7f"
    assert clean(HOSTILE) == shown
    assert clean("x" * 10_000) == "x" * 200 + "... (10000 characters)"
    assert clean_lines("bug\nforged\x1b[1m") == "bug\n  forged\\x1b[1m"


@given(st.text())
def test_json_means_the_same(text: str) -> None:
    shown = json_safe(json.dumps([text], ensure_ascii=False))
    assert shown.isprintable()
    assert json.loads(shown) == [text]
