"""Which protocol speaks on which path."""

from dataclasses import dataclass
from urllib.parse import parse_qsl

from services.simulator.protocols import alltick
from services.simulator.protocols.alltick import Alltick
from services.simulator.protocols.binance import open_binance
from services.simulator.protocols.json import Json
from services.simulator.protocols.session import Session, VendorLimits


@dataclass
class Refusal:
    """An HTTP answer instead of the handshake."""

    status: int
    body: bytes


def bare_path(target: str) -> str:
    """The path without the query: what may be logged and compared (the query can hold a token)."""
    return target.partition("?")[0] or "/"


def open_session(target: str, terms: VendorLimits, now: int) -> Session | Refusal:
    """The session for a request's target, `/stream?streams=btcusdt@trade`."""
    path = bare_path(target)
    query = dict(parse_qsl(target.partition("?")[2], keep_blank_values=True))
    if path in alltick.PATHS:
        body = alltick.refusal(query, terms)
        return Alltick(terms, now) if body is None else Refusal(401, body)
    return open_binance(path, query, terms, now) or Json(terms)


def over_the_cap(session: Session) -> Refusal | tuple[int, str]:
    """How a connection too many is turned away: AllTick closes it at once, the others refuse the handshake."""
    if session.protocol == "alltick":
        return (1008, "connection limit of this token reached")
    return Refusal(429, b"too many connections\n")
