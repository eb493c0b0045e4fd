"""What may be shown of a text that holds secrets. Pure."""

import re


def redact(url: str) -> str:
    """A URL without user, password and query: fit for a log."""
    if re.search(r"\?[^@]*=.*@", url):
        # an @ in the value of an option, or a password with ?, = and @ in it: nobody can tell where the secret ends
        return url.partition("//")[0] + "//***"
    # to the last @: a password that was pasted as it is may hold any of / ? @
    return re.sub(r"(?<=//).*@", "***@", url).partition("?")[0]
