"""All vendors' ends of the relay: which dialect serves a path, and the passing of time for its clients."""

import asyncio
import time
from collections import Counter
from urllib.parse import urlsplit

from services.relay.bus_access import BusAccess
from services.relay.delivery import Client
from services.relay.dialect_session import DialectSession
from services.relay.hub import Hub
from services.relay.registry import Registry
from services.relay.tokens import Account
from services.vendors import VENDORS, open_dialect
from services.vendors.dialect import Dialect, HttpRefusal, VendorLimits

_TIMER_SECONDS = 0.25
_OPTIONS = {
    name: vendor.relay_options for name, vendor in VENDORS.items() if vendor.relay_options is not None
}


class Dialects:
    def __init__(self, hub: Hub, access: BusAccess, registry: Registry) -> None:
        self.registry = registry
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
            limits.knows = lambda spelling: self.registry.knows(name, vendor.feed, spelling)
        return opened

    def session(self, client: Client, account: Account, dialect: Dialect) -> DialectSession:
        """Return the conversation with a new client."""
        session = DialectSession(
            self._hub, self._access, self.registry, client, account, dialect, self.unsaid
        )
        self._sessions.add(session)
        return session

    async def answer_get(self, path: str) -> bytes | None:
        """Return the body of a GET that a vendor serves; None if none does.

        RedisError if the bus cannot be read.
        """
        for vendor in VENDORS.values():
            if vendor.answer_get is None or vendor.answer_get(path, (), 0) is None:
                continue
            await self.registry.look()  # a client asks before it connects: nobody may use the registry yet
            return vendor.answer_get(path, self.registry.symbols, time.time_ns())
        return None

    def by_vendor(self) -> Counter[str]:
        """Return the number of clients of each dialect."""
        return Counter(session.vendor for session in self._sessions)

    async def run(self) -> None:
        """Let time pass for all clients, until cancelled."""
        while True:
            await asyncio.sleep(_TIMER_SECONDS)
            for session in list(self._sessions):
                if session.client.closed:
                    self._sessions.discard(session)
                else:
                    session.on_timer()
