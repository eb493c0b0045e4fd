"""A relay as a real process, and a client of its protocol that nobody of ours wrote: `websockets`."""

import json
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from support.processes import Process

JSON, MSGPACK = "tickbus.json", "tickbus.msgpack"


def start_relay(
    start: Callable[..., Process], redis: str, *more: str, shards: int = 8
) -> tuple[Process, str]:
    """Start a relay on a free port. Return it and `ws://host:port`."""
    relay = start("relay", "--redis", redis, "--shards", str(shards), "--port", "0", *more)
    return relay, relay.wait_for(r"serving (wss?://[^/]+)/v1")[1]


class RelayClient:
    """One connection to /v1."""

    def __init__(self, url: str, style: str = JSON, **options: Any) -> None:
        self._connect = connect(
            f"{url}/v1", subprotocols=[Subprotocol(style)], compression=None, max_size=None, **options
        )
        self._packed = style == MSGPACK
        self.socket: ClientConnection

    async def __aenter__(self) -> Self:
        self.socket = await self._connect
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.socket.close()

    async def say(self, **request: Any) -> None:
        await self.socket.send(msgspec.msgpack.encode(request) if self._packed else json.dumps(request))

    async def hear(self) -> Any:
        """Return the next message."""
        message = await self.socket.recv()
        if self._packed:
            assert isinstance(message, bytes)
            return msgspec.msgpack.decode(message)
        return json.loads(message)

    async def ask(self, **request: Any) -> Any:
        await self.say(**request)
        return await self.hear()

    async def data(self, enough: int) -> list[Any]:
        """Return at least so many elements of the one subscription; other messages are skipped."""
        elements: list[Any] = []
        while len(elements) < enough:
            message = await self.hear()
            if self._packed:
                elements += message[1] if isinstance(message, list) else []
            else:
                elements += message.get("data", [])
        return elements
