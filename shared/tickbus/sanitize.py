"""Makes text of others, and URLs, safe to show: in a log, on a terminal, in an error. Pure, but for one
registry: the secrets of this process, which the options register as they are loaded.

    clean(reply)        one line of bounded length, without secrets and control characters
    hide_secrets(text)  the same text without our secrets
    redact(url)         a URL without user, password and query
"""

import base64
import html
import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, quote, quote_plus, unquote

_HIDDEN = "***"
_WINDOW = 8
"""This many characters of a secret in a row are hidden wherever they stand."""
_MIN_SECRET = 4
"""A shorter one, or one below `_WINDOW`, would hide ordinary words: it is hidden as a whole word, or not."""
_SECRET_NAME = re.compile(r"token|key|secret|pass|auth|sig|credential", re.IGNORECASE)


class Secrets:
    """Texts that must not be shown, in every form in which they may come back."""

    def __init__(self) -> None:
        self._windows: set[str] = set()
        self._words: re.Pattern[str] | None = None
        self._short: set[str] = set()

    def add(self, secret: str) -> None:
        """Hide a secret from now on."""
        for form in {secret, *_forms(secret)}:
            lowered = _lower(form)
            if len(form) >= _WINDOW:
                self._windows.update(lowered[at : at + _WINDOW] for at in range(len(lowered) - _WINDOW + 1))
            elif len(form) >= _MIN_SECRET:
                self._short.add(form)
                words = "|".join(map(re.escape, sorted(self._short, key=len, reverse=True)))
                self._words = re.compile(rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])", re.IGNORECASE)

    def add_url(self, url: str) -> None:
        """Hide the password of a URL, and the values in its query that are secrets by their names."""
        # of Redis up to the last @, as in `redact`; other addresses may have one in path and query
        login = re.search(r"//(.*)@" if url.startswith("redis") else r"//([^/?#]*)@", url)
        if login is not None:
            user, colon, password = login[1].partition(":")
            self.add(password if colon else user)
            self.add(unquote(password if colon else user))
            self.add(base64.b64encode(unquote(login[1]).encode()).decode())
        for name, value in parse_qsl(url.partition("?")[2]):
            if _SECRET_NAME.search(name):
                self.add(value)

    def hide(self, text: str) -> str:
        """Return the text with each secret, and each long part of one, replaced by `***`."""
        if self._words is not None:
            text = self._words.sub(_HIDDEN, text)
        if not self._windows:
            return text
        lowered, kept, end, shown = _lower(text), [], 0, 0
        for at in range(len(lowered) - _WINDOW + 1):
            if lowered[at : at + _WINDOW] in self._windows:
                if at > end or not end:
                    kept += [text[shown:at], _HIDDEN]
                end = shown = at + _WINDOW
        return "".join([*kept, text[shown:]])


SECRETS = Secrets()
"""The secrets of this process."""


def hide_secrets(text: str) -> str:
    """Return the text without the secrets of this process."""
    return SECRETS.hide(text)


def escape(text: str) -> str:
    """Return the text with everything invisible written as an escape: control characters, line breaks,
    escape sequences, marks that change the direction of writing."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def clean(text: object, limit: int = 200) -> str:
    """Return one line of at most about `limit` characters that shows what somebody else wrote."""
    whole = str(text)
    shown = escape(hide_secrets(whole[: 4 * limit]))
    if len(shown) <= limit and len(whole) <= 4 * limit:
        return shown
    return f"{shown[:limit]}... ({len(whole)} characters)"


def clean_lines(text: object) -> str:
    """Return text of several lines, without secrets; whatever begins a line but the first is indented."""
    first, *others = hide_secrets(str(text)).split("\n")
    return "\n".join([escape(first), *(f"  {escape(line)}".rstrip() for line in others)])


def json_safe(line: str) -> str:
    """Return JSON text whose strings show nothing invisible, and mean the same."""
    if line.isprintable():
        return line
    return "".join(one if one.isprintable() else _json_escape(one) for one in line)


def redact(url: str) -> str:
    """Return a URL without user, password and query, safe to log."""
    if re.search(r"\?[^@]*=.*@", url):
        # an @ in an option's value, or a password with ?, = and @ in it: where the secret ends is unknown
        return url.partition("//")[0] + "//***"
    # up to the last @: a password pasted without encoding may contain any of / ? @
    return re.sub(r"(?<=//).*@", "***@", url).partition("?")[0]


def _forms(secret: str) -> Iterator[str]:
    """Yield the forms in which a secret comes back: encoded for URLs, JSON, HTML, or by base64."""
    data = secret.encode(errors="surrogatepass")
    yield from (quote(data), quote(data, safe=""), quote_plus(data), quote(quote(data, safe="")))
    yield from (secret.replace("/", "\\/"), secret.replace("\\", "\\\\").replace('"', '\\"'))
    yield html.escape(secret)
    yield data.hex()
    for before in range(3):  # inside of something longer it may begin at any of the three bytes of a group
        encoded = base64.b64encode(b"\0" * before + data).decode().rstrip("=")
        inner = encoded[(0, 2, 3)[before] : len(encoded) - ((before + len(data)) % 3 > 0)]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


def _lower(text: str) -> str:
    """Return it in lower case, of the same length."""
    lowered = text.lower()
    return (
        lowered
        if len(lowered) == len(text)
        else "".join(one.lower() if len(one.lower()) == 1 else one for one in text)
    )


def _json_escape(one: str) -> str:
    units = one.encode("utf-16-be", errors="surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
