"""The documents of the protocol are valid, complete, and describe what a real relay sends."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from openapi_spec_validator import validate
from relay.test_server import TOKEN, get, token_row
from support.paths import ROOT
from support.processes import Process
from support.redis_server import RedisServer
from support.relay import MSGPACK, RelayClient, start_relay
from support.writing import Writer, trade

from services.relay.delivery import CANNOT_KEEP_UP
from services.relay.documents import ASYNCAPI, CLOSE_CODES, OPENAPI, asyncapi, openapi
from services.relay.requests import Request
from services.relay.session import (
    AUTH_TIMEOUT,
    FORBIDDEN,
    TOO_LARGE,
    TOO_MANY_REQUESTS,
    UNAUTHORIZED,
)
from tickbus.protocol.messages import Bar, Flag, Gap, GapKind, Quote, Side, Signal, StreamKind, Trade
from tickbus.protocol.names import Stream
from tickbus.protocol.wants import SubscriptionState, Topic

Start = Callable[..., Process]
NS = 1_795_847_345_011_000_001
MESSAGES: list[tuple[Stream, Any]] = [
    (Stream("trade", "test", "A"), trade(1)),
    (
        Stream("trade", "test", "A"),
        Gap(StreamKind.TRADE, "gateway", GapKind.SEQUENCE, 1, NS, "5", "9", 5, True),
    ),
    (
        Stream("trade", "test", "A"),
        Trade("A", "2.50", "0.1", Side.SELL, None, NS, NS, "2", "3", Flag.LATE | Flag.CORRECTED),
    ),
    (Stream("quote", "test", "A"), Quote("A", "1.5", "2", None, None, NS, NS, Flag.BAD_TIME)),
    (
        Stream("bar", "test", "A", "time:1m"),
        Bar("time:1m", NS, NS + 1, "1", "2", "1", "2", "3", "4", None, 2, "1", "2", 0, ("partial",), "A"),
    ),
    (Stream("signal", "test", "A"), Signal("spread", "-0.02", "0.01", "1m", 'so "start":1, wide', "A", NS)),
]


def plain(document: Any) -> Any:
    """Return a document as its readers get it."""
    return json.loads(json.dumps(document))


def strict(schema: Any) -> Any:
    """Return a schema that allows nothing but what it names: readers may get more, our own test may not."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    stricter = {name: strict(each) for name, each in schema.items()}
    if "properties" in schema and schema.get("type") == "object":
        stricter.setdefault("additionalProperties", False)
    return stricter


def references(document: Any) -> Iterator[str]:
    for each in document.values() if isinstance(document, dict) else document:
        if isinstance(each, dict | list):
            yield from references(each)
    if isinstance(document, dict) and "$ref" in document:
        yield document["$ref"]


def resolve(document: Any, reference: str) -> Any:
    for name in reference.removeprefix("#/").split("/"):
        document = document[name]
    return document


class Protocol:
    """Finds the schema of each message that a relay sends on /v1, by AsyncAPI."""

    def __init__(self) -> None:
        self._document = strict(plain(asyncapi()))
        self.sent = {
            reference["$ref"].rpartition("/")[2]
            for operation in self._document["operations"].values()
            for reference in (
                operation["messages"] if operation["action"] == "send" else operation["reply"]["messages"]
            )
        }
        self.seen: set[str] = set()

    def check(self, message: Any) -> None:
        names = [name for name in self.sent if not list(self.errors(name, message))]
        assert len(names) == 1, (message, names)
        self.seen.add(names[0])
        if names[0] == "Data":
            self.seen |= {element["type"] for element in message["data"]}

    def errors(self, name: str, message: Any) -> Iterable[Any]:
        return Draft7Validator(
            {"$ref": f"#/components/schemas/{name}", "components": self._document["components"]}
        ).iter_errors(message)


class CheckedClient(RelayClient):
    """Checks everything that it hears; of a long array of elements, which are of one kind, the first ones."""

    protocol: Protocol

    async def hear(self) -> Any:
        message = await super().hear()
        if isinstance(message, dict) and "data" in message:
            self.protocol.check({**message, "data": message["data"][:10]})
        else:
            self.protocol.check(message)
        return message

    async def skip_until(self, op: str) -> Any:
        """Skip what comes before as fast as it can be read: a client that is too slow is soon cut off."""
        while not (text := str(await self.socket.recv())).startswith(f'{{"op":"{op}"'):
            pass
        self.protocol.check(message := json.loads(text))
        return message

    async def hear_until(self, op: str) -> Any:
        while True:
            message = await self.hear()
            if isinstance(message, dict) and message.get("op") == op:
                return message


@pytest.fixture
async def writer(redis_server: RedisServer) -> AsyncIterator[Writer]:
    opened = await Writer(redis_server.url).open()
    await opened.publisher.commit(opened.transaction([opened.entry(*each) for each in MESSAGES]))
    yield opened
    opened.close()


@pytest.fixture
def protocol() -> Protocol:
    CheckedClient.protocol = Protocol()
    return CheckedClient.protocol


def write_state(redis_server: RedisServer, writer: Writer, state: SubscriptionState) -> None:
    """Say what became of a subscription, in place of a gateway."""
    keys, topic = writer.keys, Topic("trade", "A")
    redis_server.client.hset(keys.subscriptions(keys.shard("A"), "test"), topic.field, state.encode())


def connected(url: str) -> socket.socket:
    """Return a connection into which little fits, and which is yet read fast."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    host, port = url.removeprefix("ws://").split(":")
    sock.connect((host, int(port)))
    return sock


async def test_every_message_of_a_relay_is_described(
    redis_server: RedisServer, start: Start, writer: Writer, protocol: Protocol, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_row("desk", TOKEN) + "want = true\n")
    relay, url = start_relay(
        start, redis_server.url, "--tokens", str(tokens), "--client-bytes", "1MB", "--drop-bytes", "1KB"
    )
    async with CheckedClient(url) as client:
        await client.ask(op="auth", token=TOKEN)
        for id, kind in enumerate(("trade", "quote", "bar", "signal")):
            await client.say(op="subscribe", id=id, kind=kind, **{"from": "start"})
            await client.hear_until("replay_completed")
        await client.ask(op="ping")
        await client.ask(op="ping", id="p")
        await client.ask(op="unsubscribe", id=0)
        await client.ask(op="unsubscribe", id=0)
        assert (await client.ask(op="watch", id="h"))["op"] == "watching"
        assert [feed["name"] for feed in (await client.hear_until("health"))["health"]["feeds"]] == ["test"]
        await client.ask(op="unsubscribe", id="h")
        for state in ("pending", "refused"):
            write_state(redis_server, writer, SubscriptionState(state, 1_795_847_345_011, "because"))
            if state == "pending":
                assert (await client.ask(op="want", id="w", symbols=["A"], feeds=["test"]))["op"] == "wanted"
            assert (await client.hear_until("want"))["state"] == state
        await client.ask(op="unsubscribe", id="w")
        await client.ask(op="want", id="w", symbols=["A*"])
        await client.ask(op="nonsense")
        await client.say(op="subscribe", id="c", policy="conflate", rate=20)
        await client.hear_until("subscribed")
        await writer.write(5, 6, symbol="NEW")
        await client.hear_until("stream")
        while "summary" not in protocol.seen:
            await client.hear()
    header = {"Authorization": f"Bearer {TOKEN}"}
    async with CheckedClient(url, MSGPACK, additional_headers=header) as client:
        await client.say(op="subscribe", id=1, symbols=["A"], **{"from": "start"})
        await client.hear_until("replay_completed")
        await client.say(op="subscribe", id=2, symbols=["A"], policy="conflate", rate=20)
        await client.hear_until("subscribed")
        await writer.write(7)
        assert (await client.data(1))[0][2] in "tc"
        assert (await client.data(1))[0][2] in "tc"
    slow: dict[str, Any] = {"max_queue": 1, "close_timeout": 1, "additional_headers": header}
    async with (
        CheckedClient(url, sock=connected(url), **slow) as dropping,
        CheckedClient(url, sock=connected(url), **slow) as lossless,
    ):
        for client, policy in ((dropping, "drop"), (lossless, "lossless")):
            await client.ask(op="subscribe", id=1, symbols=["A"], policy=policy)
        number = 8
        while relay.metric("tickbus_relay_closed_total", code="4429") == 0:
            await writer.write(*range(number, number + 1_000))
            number += 1_000
        assert (await lossless.skip_until("closing"))["cursors"]
        await dropping.skip_until("dropped")
    async with CheckedClient(url, additional_headers=header) as client:
        await client.ask(op="ping")
        relay.process.terminate()
        assert (await client.hear_until("closing"))["code"] == 1012
    assert protocol.seen == protocol.sent | {"trade", "quote", "bar", "gap", "signal", "summary"}


def test_requests_are_described() -> None:
    document = plain(asyncapi())
    asked = {
        name: operation["messages"]
        for name, operation in document["operations"].items()
        if operation["action"] == "receive"
    }
    assert set(asked) == {each.__name__.lower() for each in Request.__args__}
    protocol = Protocol()
    valid: list[dict[str, object]] = [
        {"op": "subscribe", "id": 1, "from": {"trade:test:A": "1-1@abc"}},
        {"op": "subscribe", "id": "x", "policy": "conflate", "rate": 2.5, "symbols": ["BTC-*"], "from": NS},
    ]
    for request in valid:
        assert not list(protocol.errors("Subscribe", request))
    assert not list(protocol.errors("Want", {"op": "want", "id": 1, "symbols": ["A"], "kind": "quote"}))
    assert list(protocol.errors("Want", {"op": "want", "id": 1, "symbols": ["A"], "kind": "bar"}))
    invalid: list[dict[str, object]] = [
        {"op": "subscribe"},
        {"op": "subscribe", "id": 1, "colour": "red"},
        {"op": "subscribe", "id": 1, "policy": "x"},
    ]
    for request in invalid:
        assert list(protocol.errors("Subscribe", request))


def test_asyncapi_is_whole() -> None:
    document = plain(asyncapi())
    assert document["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= document["info"].keys()
    for reference in references(document):
        assert resolve(document, reference), reference
    channel = document["channels"]["v1"]
    assert channel["address"] == "/v1"
    assert channel["messages"].keys() == document["components"]["messages"].keys()
    used = set()
    for operation in document["operations"].values():
        assert operation["action"] in ("send", "receive")
        assert operation["channel"] == {"$ref": "#/channels/v1"}
        for each in (*operation["messages"], *operation.get("reply", {"messages": []})["messages"]):
            used.add(each["$ref"].rpartition("/")[2])
    assert used == channel["messages"].keys()
    for schema in document["components"]["schemas"].values():
        Draft7Validator.check_schema(schema)
    for message in document["components"]["messages"].values():
        assert {"name", "contentType", "payload"} <= message.keys()


def test_close_codes_are_those_of_the_relay_and_its_page() -> None:
    ours = {UNAUTHORIZED, FORBIDDEN, AUTH_TIMEOUT, TOO_LARGE, TOO_MANY_REQUESTS, CANNOT_KEEP_UP}
    assert set(CLOSE_CODES) == ours | {1009, 1011, 1012}
    page = (ROOT / "docs" / "relay.md").read_text(encoding="utf-8")
    assert set(CLOSE_CODES) == {int(code) for code in re.findall(r"^\| (\d{4}) \|", page, re.MULTILINE)}


def test_openapi_is_valid() -> None:
    validate(plain(openapi()))


async def test_http_api_is_as_described(redis_server: RedisServer, start: Start, writer: Writer) -> None:
    write_state(redis_server, writer, SubscriptionState("refused", 1_795_847_345_011, "cap", fixed=True))
    _, url = start_relay(start, redis_server.url)
    served = json.loads((await asyncio.to_thread(get, url, OPENAPI))[1])
    assert served == plain(openapi())
    assert json.loads((await asyncio.to_thread(get, url, ASYNCAPI))[1]) == plain(asyncapi())
    document = strict(served)

    def check(path: str, status: int = 200) -> Any:
        found, body = get(url, path)
        assert found == status, body
        answer = document["paths"][path.partition("?")[0]]["get"]["responses"][str(status)]
        if "$ref" in answer:
            answer = resolve(document, answer["$ref"])
        schema = {**answer["content"]["application/json"]["schema"], "components": document["components"]}
        message = json.loads(body)
        Draft202012Validator(schema).validate(message)
        return message

    def check_all() -> None:
        assert len(check("/api/symbols")["data"]) == 4
        for kind in ("trade", "quote", "bar", "signal"):
            assert check(f"/api/snapshot?kind={kind}")["data"]
        assert len(check("/api/history?stream=trade:test:A&limit=2")["data"]) == 2
        assert len(check("/api/history?stream=trade:test:A")["data"]) == 3
        assert check("/api/bars?symbol=A")["next"] is None
        assert check("/api/subscriptions?feed=test")["subscriptions"] == [
            {
                "stream": "trade:test:A",
                "state": "refused",
                "since": 1_795_847_345_011,
                "reason": "cap",
                "fixed": True,
            }
        ]
        check("/api/subscriptions", 400)
        for path, described in document["paths"].items():
            if path.startswith("/api/v3/") or path in (ASYNCAPI, OPENAPI, "/api/status"):
                check(path)
            if not path.startswith("/api/v3/") and path not in (ASYNCAPI, OPENAPI):
                names = [parameter["name"] for parameter in described["get"]["parameters"]]
                assert check(f"{path}?zzz=1", 400)["error"].endswith(f"expected {', '.join(names) or 'none'}")
        check("/api/history?stream=trade:test:A&limit=1001", 400)
        served_paths = get(url, "/nothing")[1]
        ours = {path for path in document["paths"] if path.startswith("/api/") and "/v3/" not in path}
        assert set(re.findall(r"/api/\w+", served_paths)) == ours

    await asyncio.to_thread(check_all)


def test_documents_need_no_token(redis_server: RedisServer, start: Start, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_row("desk", TOKEN))
    _, url = start_relay(start, redis_server.url, "--tokens", str(tokens))
    assert get(url, ASYNCAPI)[0] == get(url, OPENAPI)[0] == 200
    assert get(url, "/api/status")[0] == 401
