"""Connections to a relay: `/v1` in MessagePack, over several relays in turn."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any
from urllib.parse import urlsplit

import msgspec

from tickbus.errors import ConfigError, RelayRefused, RelayUnavailable
from tickbus.sanitize import redact

try:
    from websockets.asyncio.client import ClientConnection, connect
    from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
    from websockets.typing import Subprotocol
except ImportError as error:
    raise ImportError("tickbus.remote needs websockets: pip install 'tickbus[remote]'") from error

_SUBPROTOCOL = "tickbus.msgpack"
_REFUSALS = (4401, 4403, 4408)
"""Close codes that another attempt does not change."""
_OPEN_SECONDS = 10.0
decode_answer = msgspec.msgpack.Decoder(dict[str, Any]).decode
encode = msgspec.msgpack.Encoder().encode


def check_url(url: str) -> str:
    """Return the address of `/v1` of a relay. ConfigError if it is invalid."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"invalid url {redact(url)}: {error}") from None
    if parts.scheme not in ("ws", "wss") or not parts.hostname or port == 0:
        raise ConfigError(f"invalid url {redact(url)}: expected ws://host:port or wss://host:port of a relay")
    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith("/v1") else f"{path}/v1").geturl()


class Dialer:
    """Opens connections to relays, each to the next one."""

    def __init__(self, urls: Sequence[str], token: str | None) -> None:
        """urls: from `check_url`."""
        self._urls = cycle(urls)
        self._token = token

    async def open(self) -> ClientConnection:
        """Connect. RelayUnavailable if no relay answers there, RelayRefused if it refuses for good."""
        url = next(self._urls)
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            return await connect(
                url,
                subprotocols=[Subprotocol(_SUBPROTOCOL)],
                additional_headers=headers,
                compression=None,
                max_size=None,
                open_timeout=_OPEN_SECONDS,
            )
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403, 404, 421):
                raise RelayRefused(
                    f"the relay at {redact(url)} refused the connection: HTTP {status}; check url and token"
                ) from None
            raise RelayUnavailable(f"the relay at {redact(url)} answers HTTP {status}") from None
        except (OSError, TimeoutError, InvalidHandshake) as error:
            raise RelayUnavailable(f"no relay at {redact(url)}: {str(error) or 'no answer'}") from None


def check_refusal(error: Exception) -> None:
    """Raise RelayRefused if a connection ended because the relay refused this client."""
    if isinstance(error, ConnectionClosed) and error.rcvd is not None and error.rcvd.code in _REFUSALS:
        raise RelayRefused(f"the relay refused this client: {error.rcvd.reason}; check the token") from None
