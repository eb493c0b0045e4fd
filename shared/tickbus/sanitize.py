"""Removes secrets from text before it is shown. Pure."""

import re


def redact(url: str) -> str:
    """Return a URL without user, password and query, safe to log."""
    if re.search(r"\?[^@]*=.*@", url):
        # an @ in an option's value, or a password with ?, = and @ in it: where the secret ends is unknown
        return url.partition("//")[0] + "//***"
    # up to the last @: a password pasted without encoding may contain any of / ? @
    return re.sub(r"(?<=//).*@", "***@", url).partition("?")[0]
