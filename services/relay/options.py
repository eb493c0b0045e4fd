"""The relay's options."""

from pathlib import Path
from typing import Annotated

from tickbus.service.options import Option, ServiceOptions
from tickbus.units import SECOND, Duration, Size


class Options(ServiceOptions, frozen=True, kw_only=True):
    host: Annotated[str, Option("address to listen on; without --tokens only loopback")] = "127.0.0.1"
    port: Annotated[
        int, Option("port of WebSockets and HTTP; 0 picks a free one", minimum=0, maximum=65535)
    ] = 9400
    tokens: Annotated[
        Path | None, Option("TOML file of who may connect, by hashed token; read again when it changes")
    ] = None
    origins: Annotated[
        tuple[str, ...],
        Option("web pages that may connect, besides the relay's own, e.g. https://desk.example"),
    ] = ()
    public_host: Annotated[
        tuple[str, ...], Option("names under which clients address the relay, e.g. ticks.example")
    ] = ()
    dialect: Annotated[
        tuple[str, ...],
        Option(
            "feed that answers a vendor's clients, e.g. alltick=binance; default: the one with the symbol"
        ),
    ] = ()
    symbol_map: Annotated[
        Path | None, Option("file of lines `canonical = vendor` for symbols that vendors spell differently")
    ] = None
    data_dir: Annotated[
        Path | None,
        Option("folder of a recorder: bars and history that the bus no longer has are read there"),
    ] = None
    tls_cert: Annotated[Path | None, Option("certificate chain (PEM) to serve wss:// and https://")] = None
    tls_key: Annotated[Path | None, Option("its private key")] = None
    client_bytes: Annotated[
        Size,
        Option("most bytes in flight to one client; a lossless one beyond it is closed", minimum=1 << 20),
    ] = Size(4 << 20)
    total_bytes: Annotated[
        Size, Option("most bytes in flight to all clients; beyond it the slowest is closed", minimum=1 << 20)
    ] = Size(512 << 20)
    drop_bytes: Annotated[Size, Option("what may wait for a client of the policy drop", minimum=1 << 10)] = (
        Size(256 << 10)
    )
    ring_bytes: Annotated[
        Size, Option("memory for the newest entries, on which clients that catch up join", minimum=1 << 20)
    ] = Size(64 << 20)
    max_clients: Annotated[int, Option("connections in total", minimum=1)] = 10_000
    max_clients_per_address: Annotated[int, Option("connections from one address", minimum=1)] = 1_000
    auth_deadline: Annotated[Duration, Option("a client must have sent its token within this time")] = (
        Duration(5 * SECOND)
    )
