"""`tickbus relay`: the bus for every app that does not speak Redis, over WebSocket and HTTP."""

import asyncio
import logging
import resource
import ssl
from functools import partial
from ipaddress import ip_address

from websockets.asyncio.server import Server

from services.relay.api import Api
from services.relay.bus_access import BusAccess
from services.relay.dialects import Dialects
from services.relay.documents import documents
from services.relay.health import Health
from services.relay.hub import Hub
from services.relay.metrics import expose
from services.relay.options import Options
from services.relay.page import Page
from services.relay.presence import Presence
from services.relay.recorded import Recorded
from services.relay.registry import Registry
from services.relay.server import Limits, RelayServer
from services.relay.tokens import Account, Tokens
from services.relay.wants import Wants
from services.vendors import VENDORS
from services.vendors.symbols import read_symbol_map
from tickbus.errors import ConfigError
from tickbus.protocol.names import Keys, check_name
from tickbus.redis.link import set_clock
from tickbus.redis.registry import check_meta
from tickbus.redis.topology import locate
from tickbus.service.runner import Service, run
from tickbus.units import SECOND

log = logging.getLogger("tickbus.relay")

ABOUT = """Serve the bus to any app: WebSocket (JSON, MessagePack) and a read-only HTTP API, on one port.

  ws://HOST:PORT/v1          subscribe to trades, quotes, bars, signals: docs/relay.md
  http://HOST:PORT/api/...   symbols, snapshot, history, bars, status
  http://HOST:PORT/          the page, for people: docs/page.md

Any number of relays may run; each client may use any of them."""
POSITIONALS = ()
_OTHER_FILES = 1_200
"""Besides clients: plain HTTP and answers to those refused, Redis, metrics."""

__all__ = ["ABOUT", "POSITIONALS", "Options", "start"]


def start(options: Options) -> int:
    tokens = Tokens(options.tokens)
    if not tokens.required and not _is_loopback(options.host):
        raise ConfigError(
            f"--host {options.host} without --tokens: everybody could read everything; "
            "name a file of tokens, or listen on 127.0.0.1"
        )
    preferred = _preferred_feeds(options.dialect)
    return run(partial(_run, options, tokens, _tls(options), preferred), options, "relay")


def _allow_files(clients: int) -> None:
    """Raise the limit of open files to what this many clients need, as far as the system lets us."""
    needed = clients + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        log.warning(
            "--max-clients %d: this process may open only %d files; raise its limit (ulimit -n,"
            " LimitNOFILE=), or lower --max-clients",
            clients, allowed,
        )  # fmt: skip


def _preferred_feeds(pairs: tuple[str, ...]) -> dict[str, str]:
    preferred = {}
    for pair in pairs:
        vendor, equals, feed = pair.partition("=")
        if vendor not in VENDORS or not equals:
            raise ConfigError(
                f"invalid --dialect {pair}: expected VENDOR=FEED, VENDOR one of {', '.join(VENDORS)}"
            )
        preferred[vendor] = check_name(feed)
    return preferred


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls(options: Options) -> ssl.SSLContext | None:
    if options.tls_cert is None:
        if options.tls_key is not None:
            raise ConfigError("--tls-key without --tls-cert: name the certificate too")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"--tls-cert {options.tls_cert}: {error}; expected PEM files") from None
    return context


async def _run(
    options: Options,
    tokens: Tokens,
    tls: ssl.SSLContext | None,
    preferred: dict[str, str],
    service: Service,
) -> None:
    _allow_files(options.max_clients)
    redis = locate(options.redis)
    keys = Keys(options.prefix, options.shards)
    access = BusAccess(redis, keys)
    hub = Hub(redis, access, options.ring_bytes, options.drop_bytes, options.total_bytes)
    link = await redis.open_checked()
    try:
        await check_meta(link, keys)
        await set_clock(link, hub.clock)
    finally:
        link.close()
    limits = Limits(
        options.client_bytes, options.max_clients, options.max_clients_per_address,
        options.auth_deadline / SECOND, frozenset(options.origins),
        frozenset(host.lower() for host in options.public_host),
    )  # fmt: skip

    wants = Wants(options.redis, keys, access)
    dialects = Dialects(hub, access, Registry(access, read_symbol_map(options.symbol_map), preferred), wants)
    recorded = None if options.data_dir is None else Recorded(options.data_dir, options.log_level)
    health = Health(options.redis, options.prefix, names_all=not tokens.required)

    async def status(account: Account) -> dict[str, object]:
        bus = await health.current(account.scope)
        return presence.status(with_clients=not tokens.required) | {"bus": bus}

    api = Api(access, status, documents(), recorded)
    server = RelayServer(hub, access, tokens, api, dialects, limits, options.host, health, _page())
    presence = Presence(redis, keys, hub, server, service)
    expose(service.meters, hub, server, lambda: presence.census)
    reading = asyncio.create_task(hub.run(), name="hub")
    background = [
        asyncio.create_task(coroutine)
        for coroutine in (
            server.watch_tokens(),
            dialects.run(),
            dialects.registry.run(),
            wants.run(),
            health.run(),
        )
    ]
    try:
        while not hub.up and not reading.done():
            await asyncio.sleep(0.01)
        if reading.done():
            reading.result()
        listener = await _listen(server, options, tls)
        port = next(iter(listener.sockets)).getsockname()[1]
        presence.url = f"{'wss' if tls else 'ws'}://{_in_url(options.host)}:{port}"
        log.info("relay: serving %s/v1, page %s/", presence.url, presence.url.replace("ws", "http", 1))
        service.ready = True
        background.append(asyncio.create_task(presence.run()))
        await service.until_stopping(_first(reading, *background))
        service.ready, service.why_not_ready = False, "stopping"
        listener.close(close_connections=False)
        await server.drain(options.stop_deadline / SECOND)
        listener.close()
    finally:
        for task in (reading, *background):
            task.cancel()
        await asyncio.gather(reading, *background, return_exceptions=True)
        await wants.close()
        await presence.close()
        if recorded is not None:
            recorded.close()
        access.close()


def _page() -> Page | None:
    try:
        return Page()
    except (OSError, KeyError) as error:
        log.warning("the page is not served, all else is: its files are missing: %s; install again", error)
        return None


async def _listen(server: RelayServer, options: Options, tls: ssl.SSLContext | None) -> Server:
    try:
        return await server.serve(options.port, tls)
    except OSError as error:
        raise ConfigError(
            f"--host {options.host}, --port {options.port}: cannot listen there: {error.strerror}; "
            "choose another"
        ) from None


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _first(*tasks: "asyncio.Task[None]") -> None:
    """Wait for the first task that ends, which it does only by an error."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
