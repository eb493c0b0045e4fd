"""What the relay serves, described for machines: AsyncAPI 3 for `/v1`, OpenAPI 3.1 for HTTP. Pure.

Requests and elements are made from the structs that the relay itself reads and writes, so they cannot say
something else. Both documents stand at fixed paths and need no token.
"""

from collections.abc import Collection
from enum import IntEnum
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

from services.relay.conflation import TRADE_FIELDS
from services.relay.requests import Auth, Ping, Subscribe, Unsubscribe, Want, Watch
from tickbus.protocol.messages import Bar, Flag, Gap, Quote, Signal, Trade
from tickbus.protocol.names import KINDS
from tickbus.protocol.wants import STATES
from tickbus.version import VERSION

ASYNCAPI, OPENAPI = "/asyncapi.json", "/openapi.json"
_JSON = "application/json"
_MSGPACK = "application/msgpack"
_REF = "#/components/schemas/"
Schema = dict[str, Any]

CLOSE_CODES: dict[int, str] = {
    1009: "a message of more than 64 KB",
    1011: "a fault of the relay, which is in its log: connect again",
    1012: "this relay stops: connect again, to any relay, and resume",
    4401: "no token, or an unknown one",
    4403: "the token was changed or removed, or has too many connections",
    4408: "no token in time",
    4413: "a request of more than 16 KB",
    4420: "more than 20 requests a second",
    4429: "the client cannot keep up: resume from the last cursor received",
}
"""With which a connection of `/v1` may end, besides those of the WebSocket protocol itself."""

MAX_ROWS = 1_000
"""Most rows of a page."""


def documents() -> dict[str, tuple[int, str, bytes]]:
    """Return the answers by path: status, content type, body."""
    return {
        ASYNCAPI: (200, _JSON, msgspec.json.encode(asyncapi())),
        OPENAPI: (200, _JSON, msgspec.json.encode(openapi())),
    }


# elements

_DECIMAL: Schema = {"type": "string", "pattern": r"^-?\d+(\.\d+)?$"}
_TIME: Schema = {"type": "integer", "description": "ns since the epoch, UTC: above 2^53"}
_CURSOR: Schema = {"type": "string", "pattern": r"^\d+-\d+$", "description": "the stream ID"}
_STREAM: Schema = {"type": "string", "examples": ["trade:binance:BTC-USDT"]}
_FLAGS: Schema = {"type": "array", "items": {"enum": [flag.name.lower() for flag in Flag if flag.name]}}
_QUALITY: Schema = {
    "type": "array",
    "items": {"enum": ["partial", "has_gap", "repaired", "clock_ahead"]},
    "description": "empty: complete",
}
_TIMES = ("ts_event", "ts_recv", "start", "end", "from_ts", "to_ts", "episode")
_DETAILS: Schema = {
    "type": "array",
    "items": {"type": "array", "prefixItems": [{"type": "string"}, _DECIMAL], "minItems": 2, "maxItems": 2},
    "description": "more numbers: name and value",
}


def _object(properties: dict[str, Schema], optional: Collection[str] = (), **more: object) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, **more}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _field(name: str, kind: Any) -> Schema:
    """Return the schema of a field of a message as JSON has it. name: as in the struct."""
    if get_origin(kind) is Union or type(kind).__name__ == "UnionType":
        (inner,) = (each for each in get_args(kind) if each is not type(None))
        return _nullable(_field(name, inner))
    if name == "flags":
        return _FLAGS
    if name == "quality":
        return _QUALITY
    if name == "details":
        return _DETAILS
    if name in _TIMES:
        return _TIME
    if name.endswith("_text"):
        return _DECIMAL
    if isinstance(kind, type) and issubclass(kind, IntEnum):
        return {"enum": [member.name.lower() for member in kind]}
    return {"type": {str: "string", int: "integer", bool: "boolean"}[kind]}


def _head(name: str) -> dict[str, Schema]:
    return {"type": {"const": name}, "stream": _STREAM, "feed": {"type": "string"}, "cursor": _CURSOR}


def _element(message: type[msgspec.Struct]) -> Schema:
    """Return the schema of what `json_object` makes of a message."""
    hints = get_type_hints(message)
    fields = {
        name.removesuffix("_text"): _field(name, hints[name])
        for name in message.__struct_fields__
        if not (message is Gap and name == "stream")  # the head has it
    }
    about = (message.__doc__ or "").partition("\n")[0]
    return _object({**_head(message.__name__.lower()), **fields}, description=about)


def _summary() -> Schema:
    fields: dict[str, Schema] = {}
    for name in TRADE_FIELDS:
        if name in ("count", "aside"):
            fields[name] = {"type": "integer", "minimum": 0}
        else:
            schema = _TIME if name in _TIMES else _DECIMAL
            fields[name] = schema if name in ("volume", "value") else _nullable(schema)
    fields["aside"] = {
        **fields["aside"],
        "description": "trades that were late, backfilled, cancelled or off the book: in none of the values",
    }
    head = {**_head("summary"), "symbol": {"type": "string"}}
    about = "The trades of an interval, with the policy conflate."
    return _object({**head, **fields, "has_gap": {"type": "boolean"}}, description=about)


_MESSAGES = (Trade, Quote, Bar, Gap, Signal)


def _elements() -> dict[str, Schema]:
    schemas = {message.__name__: _element(message) for message in _MESSAGES}
    names = [*schemas, "Summary"]
    return {
        **schemas,
        "Summary": _summary(),
        "Element": {"oneOf": [{"$ref": _REF + name} for name in names]},
    }


# /v1

_ID: Schema = {"type": ["integer", "string"], "description": "chosen by the client"}
_POSITION: dict[str, Schema] = {
    "stream": _STREAM,
    "cursor": {**_CURSOR, "description": "after which the stream begins"},
    "history": {"type": ["string", "null"], "description": "append it to a cursor, behind an @"},
}


def _answer(op: str, about: str, fields: dict[str, Schema], *optional: str) -> Schema:
    return _object({"op": {"const": op}, **fields}, optional, description=about)


def _requests() -> dict[str, Schema]:
    _, schemas = msgspec.json.schema_components(
        (Auth, Subscribe, Want, Watch, Unsubscribe, Ping), ref_template=_REF + "{name}"
    )
    for schema in schemas.values():
        schema["description"] = "\n".join(line.strip() for line in schema["description"].splitlines())
    fields = schemas["Subscribe"]["properties"]
    rates = "0.1 to 20, above 1 rounded up to a whole number; 4 by default"
    fields["rate"] |= {"description": f"with the policy conflate only: {rates}"}
    fields["from"] |= {"description": "now, start, a time, last:N, or a cursor per stream"}
    schemas["Subscribe"]["description"] = "Ask for the messages of some streams. Empty lists mean all."
    return schemas


_WANTED: dict[str, Schema] = {
    "stream": _STREAM,
    "state": {"enum": list(STATES)},
    "since": {"type": "integer", "description": "ms since the epoch"},
    "reason": {"type": "string", "description": "why it is refused, or not active yet; else empty"},
}
_ID_OR_NULL: Schema = {"type": ["integer", "string", "null"]}
_SECONDS: Schema = {"type": ["number", "null"], "description": "seconds; null: unknown"}
_COUNT: Schema = {"type": "integer", "minimum": 0}


def _counts(about: str) -> Schema:
    return {"type": "object", "additionalProperties": {"type": "integer"}, "description": about}


def _list(items: dict[str, Schema], about: str) -> Schema:
    return {"type": "array", "items": _object(items), "description": about}


_HEALTH: Schema = _object(
    {
        "time": {"type": ["integer", "null"], "description": "of Redis, ms since the epoch; null: unknown"},
        "reason": {"type": "string", "description": "why nothing is known; else empty"},
        "feeds": _list(
            {
                "name": {"type": "string"},
                "state": {"type": "string", "description": "up; down: not connected; gone: no gateway"},
                "since": {
                    "type": ["integer", "null"],
                    "description": "of the state, ms since the epoch; null: since before this relay looked",
                },
                "clock_age": _SECONDS,
                "last_tick_age": _SECONDS,
                "streams": _COUNT,
                "silent": {**_COUNT, "description": "streams that never had a tick"},
                "gaps": _counts("by kind"),
                "missing": {**_COUNT, "description": "ticks that Gaps count and that were not repaired"},
                "repaired": {**_COUNT, "description": "Gaps"},
                "subscriptions": _counts("by state"),
                "standby": {"type": "boolean", "description": "whether a second gateway stands by"},
            },
            "those that the token may read",
        ),
        "services": _list(
            {
                "name": {"type": "string"},
                "replicas": {**_COUNT, "description": "that live"},
                "free": {**_COUNT, "description": "shards without a replica"},
                "ticks": {**_COUNT, "description": "entries that it is behind"},
                "seconds": {"type": "number", "description": "age of the oldest of them"},
                "lost": {**_COUNT, "description": "entries that were trimmed before it read them"},
                "headroom": {**_SECONDS, "description": "seconds until the next one is trimmed; null: none"},
            },
            "each that commits positions",
        ),
        "relays": _list(
            {
                "clients": _COUNT,
                "streams": _COUNT,
                "in_flight": {**_COUNT, "description": "bytes"},
                "subscriptions": _counts("by policy"),
            },
            "those that run",
        ),
        "faults": {
            "type": "array",
            "items": {"type": "string"},
            "description": "what is wrong with the keys of the bus; only on a relay without tokens",
        },
    },
    description="How the bus is.",
)
_ANSWERS: dict[str, Schema] = {
    "Authorized": _answer("authorized", "The token is valid.", {"name": {"type": "string"}}),
    "Subscribed": _answer(
        "subscribed",
        "The streams there are, and where each begins.",
        {"id": _ID, "streams": {"type": "array", "items": _object(_POSITION)}},
    ),
    "Wanted": _answer(
        "wanted",
        "The relay asks the gateway of a feed for it, until unsubscribe.",
        {"id": _ID, "feed": {"type": "string"}},
    ),
    "WantState": _answer("want", "What became of a stream that is wanted.", {"id": _ID, **_WANTED}),
    "Watching": _answer("watching", "From now on it is told how the bus is.", {"id": _ID}),
    "Health": _answer("health", "How the bus is, once a second.", {"id": _ID, "health": _HEALTH}),
    "Unsubscribed": _answer("unsubscribed", "No more data of this subscription follow.", {"id": _ID}),
    "Pong": _answer("pong", "The answer to ping.", {"id": _ID_OR_NULL}),
    "Error": _answer(
        "error",
        "A request that cannot be carried out; nothing else changes.",
        {
            "id": _ID_OR_NULL,
            "reason": {"type": "string"},
            "retry": {"const": True, "description": "there where the same request may succeed later"},
        },
        "retry",
    ),
    "StreamAppeared": _answer(
        "stream", "A stream that is new: it is delivered from its first entry.", {"id": _ID, **_POSITION}
    ),
    "ReplayCompleted": _answer("replay_completed", "History ends here, live data follow.", {"id": _ID}),
    "Dropped": _answer(
        "dropped",
        "Elements were dropped, with the policy drop.",
        {"id": _ID, "count": {"type": "integer", "minimum": 1}},
    ),
    "Closing": _answer(
        "closing",
        "The connection is about to end.",
        {
            "code": {"enum": [1012, 4429]},
            "reason": {"type": "string"},
            "cursors": {
                "type": "object",
                "additionalProperties": {"type": "string"},
                "description": "where each stream can be resumed, if the newest data were not received",
            },
        },
        "cursors",
    ),
    "Data": _object(
        {"id": _ID, "data": {"type": "array", "items": {"$ref": _REF + "Element"}, "minItems": 1}},
        description="Elements of a subscription, each stream's in order.",
    ),
}
_PACKED_DATA: Schema = {
    "type": "array",
    "items": [
        _ID,
        {
            "type": "array",
            "items": {
                "type": "array",
                "items": [
                    _STREAM,
                    _CURSOR,
                    {
                        "type": "string",
                        "maxLength": 1,
                        "description": "t, q, b, g, s: as on the bus; c: a summary",
                    },
                    {"type": "array", "description": "the message as on the bus: docs/wire-format.md"},
                ],
                "additionalItems": False,
                "minItems": 4,
            },
        },
    ],
    "additionalItems": False,
    "minItems": 2,
    "description": "Elements of a subscription, with the subprotocol tickbus.msgpack.",
}
_REPLIES = {
    "Auth": ("Authorized",),
    "Subscribe": ("Subscribed", "Error"),
    "Want": ("Wanted", "Error"),
    "Watch": ("Watching", "Error"),
    "Unsubscribe": ("Unsubscribed", "Error"),
    "Ping": ("Pong",),
}
_UNASKED = (
    "Data", "PackedData", "StreamAppeared", "WantState", "Health", "ReplayCompleted", "Dropped", "Closing",
    "Error",
)  # fmt: skip


def asyncapi() -> dict[str, Any]:
    """Return the description of `/v1`."""
    requests = _requests()
    schemas = {**requests, **_ANSWERS, "PackedData": _PACKED_DATA, **_elements()}
    names = (*requests, *_ANSWERS, "PackedData")
    messages = {
        name: {
            "name": name,
            "summary": schemas[name]["description"].partition("\n")[0],
            "contentType": _MSGPACK if name == "PackedData" else _JSON,
            "payload": {"$ref": _REF + name},
        }
        for name in names
    }
    channel = {"$ref": "#/channels/v1"}

    def of_channel(names: tuple[str, ...]) -> list[dict[str, str]]:
        return [{"$ref": f"#/channels/v1/messages/{name}"} for name in names]

    operations: dict[str, Any] = {
        name.lower(): {
            "action": "receive",
            "channel": channel,
            "summary": schemas[name]["description"].partition("\n")[0],
            "messages": of_channel((name,)),
            "reply": {"channel": channel, "messages": of_channel(replies)},
        }
        for name, replies in _REPLIES.items()
    }
    operations["deliver"] = {
        "action": "send",
        "channel": channel,
        "summary": "Data of subscriptions, and what there is to say of them.",
        "messages": of_channel(_UNASKED),
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "tickbus relay",
            "version": VERSION,
            "description": "Market data over WebSocket: exact, in order, with every gap reported. Offer the"
            " subprotocol tickbus.json (the default) or tickbus.msgpack. Decimals are text, times are"
            " integers in ns, absent values are null.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": _JSON,
        "servers": {
            "relay": {
                "host": "{host}",
                "protocol": "ws",
                "description": "wss where the relay has a certificate",
                "variables": {"host": {"default": "127.0.0.1:9400"}},
                "security": [{"$ref": f"#/components/securitySchemes/{name}"} for name in _SECURITY],
            }
        },
        "channels": {
            "v1": {
                "address": "/v1",
                "servers": [{"$ref": "#/servers/relay"}],
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
                "bindings": {
                    "ws": {
                        "method": "GET",
                        "query": {
                            "type": "object",
                            "properties": {"token": {"type": "string", "description": "of the client"}},
                        },
                        "headers": {
                            "type": "object",
                            "properties": {
                                "Authorization": {"type": "string", "description": "Bearer TOKEN"},
                                "Sec-WebSocket-Protocol": {
                                    "type": "string",
                                    "description": "tickbus.json or tickbus.msgpack; browsers send their"
                                    " token as tickbus.token. + base64url of it",
                                },
                            },
                        },
                        "bindingVersion": "0.1.0",
                    }
                },
                "x-close-codes": {str(code): text for code, text in CLOSE_CODES.items()},
            }
        },
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas, "securitySchemes": _ASYNC_SECURITY},
    }


_SECURITY: dict[str, Schema] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "query": {"type": "apiKey", "in": "query", "name": "token"},
}
_ASYNC_SECURITY: dict[str, Schema] = {
    "bearer": _SECURITY["bearer"],
    "query": {**_SECURITY["query"], "type": "httpApiKey"},
}


# HTTP

_LIST = {"style": "form", "explode": False}


def _parameter(name: str, schema: Schema, about: str, **more: object) -> Schema:
    return {"name": name, "in": "query", "schema": schema, "description": about, **more}


def _texts(name: str, about: str) -> Schema:
    return _parameter(name, {"type": "array", "items": {"type": "string"}}, about, **_LIST)


def _kind(default: str | None) -> Schema:
    schema: Schema = {"type": "string", "enum": list(KINDS)}
    return _parameter("kind", schema if default is None else {**schema, "default": default}, "kind of stream")


_TEXT: Schema = {"type": "string"}
_SYMBOLS = _texts("symbols", "names or globs, BTC-*; all by default")
_FEEDS = _texts("feeds", "all by default")
_SPECS = _texts("specs", "of bars, time:1m; all by default")
_LIMIT = _parameter(
    "limit",
    {"type": "integer", "minimum": 1, "maximum": MAX_ROWS, "default": MAX_ROWS},
    "most rows of the page, which ends at 256 KB too, or earlier with recorded files: next is what counts",
)
_ROW = _object(
    {
        "stream": _STREAM,
        "kind": {"enum": list(KINDS)},
        "feed": _TEXT,
        "symbol": _TEXT,
        "spec": {"type": ["string", "null"]},
        "cursor": {**_CURSOR, "description": "of the newest entry"},
        "entries": {"type": "integer", "description": "ever written"},
    }
)


def _page(items: Schema, **more: Schema) -> Schema:
    return _object({"data": {"type": "array", "items": items}, **more})


_CLIENT = _object(
    {
        "name": {**_TEXT, "description": "of its token"},
        "address": _TEXT,
        "protocol": _TEXT,
        "subscriptions": _counts("by policy"),
        "in_flight": {"type": "integer", "description": "bytes on their way to it, or waiting for it"},
        "oldest": {"type": ["number", "null"], "description": "seconds that the oldest of them have waited"},
        "dropped": {"type": "integer", "description": "elements"},
    }
)
_ELEMENTS = _page({"$ref": _REF + "Element"})
_PATHS: dict[str, tuple[str, list[Schema], Schema]] = {
    "/api/symbols": ("The streams there are.", [_kind(None), _SYMBOLS, _FEEDS, _SPECS], _page(_ROW)),
    "/api/snapshot": (
        "The newest message of each stream: read on from its cursor.",
        [_kind("trade"), _SYMBOLS, _FEEDS, _SPECS],
        _ELEMENTS,
    ),
    "/api/history": (
        "Entries of one stream, oldest first; older ones from recorded files, where the relay has them.",
        [
            _parameter("stream", _TEXT, "e.g. trade:binance:BTC-USDT", required=True),
            _parameter("from", {**_TEXT, "default": "start"}, "start, or a time: ns, us, ms, s, or ISO text"),
            _parameter("after", _CURSOR, "the cursor before the page; instead of from"),
            _LIMIT,
        ],
        _page(
            {"$ref": _REF + "Element"}, next={**_nullable(_CURSOR), "description": "after= of the next page"}
        ),
    ),
    "/api/bars": (
        "Bars by their start, the newest revision of each; older ones from recorded files.",
        [
            _parameter("symbol", _TEXT, "e.g. BTC-USDT", required=True),
            _parameter("spec", {**_TEXT, "default": "time:1m"}, "of the bars"),
            _parameter("feed", _TEXT, "the service that makes them, where there are several"),
            _parameter("from", _TEXT, "first start: a time"),
            _parameter("to", _TEXT, "end, not included: a time"),
            _LIMIT,
        ],
        _page({"$ref": _REF + "Bar"}, next={**_nullable(_TIME), "description": "from= of the next page"}),
    ),
    "/api/subscriptions": (
        "What the gateway of a feed is subscribed to, or asked for and why it is not.",
        [_parameter("feed", _TEXT, "its name", required=True)],
        _object(
            {
                "subscriptions": {
                    "type": "array",
                    "items": _object(
                        {
                            **_WANTED,
                            "fixed": {
                                "type": "boolean",
                                "description": "the gateway's own options ask for it",
                            },
                        }
                    ),
                }
            }
        ),
    ),
    "/api/status": (
        "How the relay is.",
        [],
        _object(
            {
                "up": {"type": "boolean", "description": "whether the bus is being read"},
                "clients": {"type": "integer"},
                "streams": {"type": "integer", "description": "that are followed"},
                "protocols": _counts("clients, by subprotocol of /v1 or vendor"),
                "subscriptions": _counts("by policy"),
                "in_flight": {"type": "integer", "description": "bytes on their way to all clients"},
                "bus": _HEALTH,
                "listed": {
                    "type": "array",
                    "items": _CLIENT,
                    "description": "the clients furthest behind; only on a relay without tokens",
                },
            },
            ("listed",),
        ),
    ),
}
_ANY_OBJECT: Schema = {"type": "object"}
_VENDOR_PATHS = {
    "/api/v3/ping": "As Binance's: is it there?",
    "/api/v3/time": "As Binance's: ms since the epoch.",
    "/api/v3/exchangeInfo": "As Binance's: the symbols on the bus, in its spelling.",
}
_DOCUMENT_PATHS = {ASYNCAPI: "The description of /v1, AsyncAPI 3.", OPENAPI: "This document."}
_ERRORS = {
    400: "a parameter is invalid, or a header is there twice",
    401: "no token, or an unknown one",
    403: "the origin is not allowed, or the token may not read this, or no history",
    421: "unknown Host: name it with --public-host",
    429: "too many connections",
    503: "the bus or recorded files cannot be read now, or too many requests or connections: try again after"
    " Retry-After seconds",
}
_PLAIN = (400, 401, 403, 421, 429, 503)
"""Also refused before a path is looked at, in plain text."""


def _get(about: str, parameters: list[Schema], schema: Schema, errors: tuple[int, ...]) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": {"description": about, "content": {_JSON: {"schema": schema}}}}
    responses |= {str(status): {"$ref": f"#/components/responses/{status}"} for status in errors}
    return {"summary": about, "parameters": parameters, "responses": responses}


def openapi() -> dict[str, Any]:
    """Return the description of the HTTP API."""
    paths: dict[str, Any] = {
        path: {"get": {"operationId": path.rpartition("/")[2], **_get(*described, tuple(_ERRORS))}}
        for path, described in _PATHS.items()
    }
    for path, about in _VENDOR_PATHS.items():
        paths[path] = {"get": _get(about, [], _ANY_OBJECT, tuple(code for code in _ERRORS if code != 400))}
    for path, about in _DOCUMENT_PATHS.items():
        paths[path] = {"get": {**_get(about, [], _ANY_OBJECT, (403, 421, 429, 503)), "security": []}}
    error = {"schema": {"$ref": f"{_REF}HttpError"}}
    responses = {
        str(status): {
            "description": text,
            "content": {_JSON: error} | ({"text/plain": {"schema": _TEXT}} if status in _PLAIN else {}),
        }
        for status, text in _ERRORS.items()
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tickbus relay",
            "version": VERSION,
            "description": "What is on the bus, read only. Decimals are text, times are integers in ns,"
            " absent values are null. Where the relay has no tokens, none is needed. Other paths are 404,"
            " other methods than GET, HEAD and OPTIONS 405.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"bearer": []}, {"query": []}],
        "paths": paths,
        "components": {
            "schemas": {**_elements(), "HttpError": _object({"error": _TEXT})},
            "responses": responses,
            "securitySchemes": _SECURITY,
        },
    }
