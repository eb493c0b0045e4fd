"""All vendors' ends of the relay: which dialect serves a path, and the passing of time for its clients."""

import asyncio
import logging
import time
from collections import Counter
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from services.relay.bus_access import BusAccess
from services.relay.delivery import Client
from services.relay.dialect_session import DialectSession
from services.relay.hub import Hub
from services.relay.registry import Registry
from services.relay.requests import BadRequest
from services.relay.tokens import Account
from services.relay.wants import Wants
from services.vendors import VENDORS, open_dialect
from services.vendors.dialect import Dialect, HttpRefusal, VendorLimits
from tickbus.errors import ConfigError
from tickbus.protocol.names import check_symbol

log = logging.getLogger("tickbus.relay")

_TIMER_SECONDS = 0.25
_INTERNAL_ERROR = 1011
_OPTIONS = {
    name: vendor.relay_options for name, vendor in VENDORS.items() if vendor.relay_options is not None
}


class Dialects:
    def __init__(self, hub: Hub, access: BusAccess, registry: Registry, wants: Wants) -> None:
        self.registry = registry
        self.wants = wants
        self._accounts: WeakKeyDictionary[Dialect, Account] = WeakKeyDictionary()
        self.unsaid: Counter[str] = Counter()
        """What no vendor's protocol can say, by reason: gap, late."""
        self._hub = hub
        self._access = access
        self._sessions: set[DialectSession] = set()

    def open(self, target: str) -> Dialect | HttpRefusal:
        """Return the dialect of a request target, or why there is none."""
        limits = VendorLimits()
        opened = open_dialect(target, limits, _OPTIONS, time.monotonic_ns())
        if isinstance(opened, HttpRefusal):
            return opened
        name = opened.vendor
        vendor = VENDORS[name]
        if vendor.listener_paths and urlsplit(target).path not in vendor.listener_paths:
            return HttpRefusal(404, b'{"error":"nothing is served here: expected /v1 or a path of a vendor"}')
        if vendor.refuses_unknown_symbols:
            limits.knows = lambda spelling: (
                self.registry.knows(name, vendor.feed, spelling) or self._may_want(opened, spelling)
            )
        return opened

    def _may_want(self, dialect: Dialect, spelling: str) -> bool:
        """Whether a symbol that the bus does not have can be asked for."""
        account = self._accounts.get(dialect)
        try:
            check_symbol(self.registry.symbol(VENDORS[dialect.vendor].feed, spelling))
            self.wants.choose_feed((), self.registry.preferred(dialect.vendor))
        except (ConfigError, BadRequest):
            return False
        return account is not None and account.want

    def session(self, client: Client, account: Account, dialect: Dialect) -> DialectSession:
        """Return the conversation with a new client."""
        self._accounts[dialect] = account
        session = DialectSession(
            self._hub, self._access, self.registry, client, account, dialect, self.unsaid, self.wants
        )
        self._sessions.add(session)
        return session

    async def answer_get(self, path: str, account: Account) -> bytes | None:
        """Return the body of a GET that a vendor serves; None if none does. RedisError if the bus does not
        answer."""
        for vendor in VENDORS.values():
            if vendor.answer_get is not None and vendor.answer_get(path, (), 0) is not None:
                await self.registry.look()
                symbols = {symbol for symbol in self.registry.symbols if symbol in account.scope.symbols}
                return vendor.answer_get(path, symbols, time.time_ns())
        return None

    async def run(self) -> None:
        """Let time pass for all clients, until cancelled."""
        while True:
            await asyncio.sleep(_TIMER_SECONDS)
            for session in list(self._sessions):
                if session.client.closed:
                    self._sessions.discard(session)
                else:
                    _pass_time(session)


def _pass_time(session: DialectSession) -> None:
    """Let time pass for one client; what goes wrong with it ends it alone."""
    try:
        session.on_timer()
    except Exception:
        log.exception("a %s client failed: a bug of tickbus; it is disconnected", session.vendor)
        session.client.close(_INTERNAL_ERROR, "internal error")
