"""Signatures as in Standard Webhooks (https://www.standardwebhooks.com). Pure."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

from tickbus.errors import ConfigError

_PREFIX = "whsec_"


def parse_secret(text: str, where: str) -> bytes:
    """Return the key in `whsec_<base64>`. ConfigError, which does not show it, if it is not such a text."""
    try:
        if not text.startswith(_PREFIX):
            raise ValueError
        if key := base64.b64decode(text.removeprefix(_PREFIX), validate=True):
            return key
    except (ValueError, binascii.Error):
        pass
    raise ConfigError(f"{where}: invalid: expected whsec_<base64 of 24 to 64 random bytes>")


def signed_headers(secrets: Sequence[bytes], id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers that prove who sent this body, and when.

    secrets: the receiver needs to know one of them. timestamp: of this attempt, seconds since the epoch.
    """
    content = f"{id}.{timestamp}.".encode() + body
    signatures = (hmac.new(secret, content, hashlib.sha256).digest() for secret in secrets)
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(one).decode()}" for one in signatures),
    }
