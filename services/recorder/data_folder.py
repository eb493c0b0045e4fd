"""Whose folder this is: the file `_bus` in it names the bus that is recorded there, and the folder itself.

The id of a bus is made when a recorder first meets it, and stored in `tickbus:meta`. A bus that was emptied
gets its id back from the folder. One that never had an id, at another address, is another bus.
"""

import logging
import secrets
from pathlib import Path

import msgspec

from services.recorder import files, manifest
from tickbus.durable import fsync_dir
from tickbus.errors import ConfigError
from tickbus.protocol.names import START, Keys, Stream, StreamId
from tickbus.redis.link import Connection
from tickbus.redis.registry import claim_bus, claim_folder, read_bus, read_positions
from tickbus.redis.urls import address_of

log = logging.getLogger("tickbus.recorder")

NAME = "_bus"


class Identity(msgspec.Struct, frozen=True):
    """What the file says."""

    bus: str
    """The id of the bus."""
    folder: str = ""
    """The id of this folder."""
    prefix: str = ""
    server: str = ""
    """Where the bus was last, without secrets."""


_decode = msgspec.json.Decoder(Identity).decode


async def claim(data_dir: Path, link: Connection, keys: Keys, service: str, url: str) -> Identity:
    """Return the identity of this folder, which belongs to this bus from now on. ConfigError if it belongs to
    another bus, or if live replicas of the service record into another folder.
    """
    try:
        return await _claim(data_dir, link, keys, service, url)
    except OSError as error:
        raise ConfigError(f"--data-dir {data_dir}: {error.strerror or error}") from None


async def _claim(data_dir: Path, link: Connection, keys: Keys, service: str, url: str) -> Identity:
    here = Identity("", secrets.token_hex(8), keys.prefix, address_of(url))
    known, bus = read(data_dir), await read_bus(link, keys)
    if known is None:
        bus = await claim_bus(link, keys, bus)
        await _check_positions(data_dir, link, keys, service, bus)
        known = create(data_dir, msgspec.structs.replace(here, bus=bus))
    elif bus is None:
        if (known.prefix, known.server) != (here.prefix, here.server) and known.server:
            raise _refusal(data_dir, known, f"the one at {here.server} is new")
        bus = await claim_bus(link, keys, known.bus)
    if known.bus != bus:
        raise _refusal(data_dir, known, f"the one at {here.server} has the id {bus}")
    moved = msgspec.structs.replace(
        known, folder=known.folder or here.folder, prefix=here.prefix, server=here.server
    )
    if moved != known:
        known = moved
        _replace(data_dir, known)
    if await claim_folder(link, keys, service, known.folder):
        log.warning(
            "service %r recorded into another folder until now; %s begins where its own manifests end",
            service,
            data_dir,
        )
    return known


def read(data_dir: Path) -> Identity | None:
    """Return what the file says; None if there is none. ConfigError if it cannot be read."""
    path = data_dir / NAME
    try:
        return _decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is unreadable: {error}; restore it, or delete it if this folder belongs to this bus"
        ) from None


def create(data_dir: Path, identity: Identity) -> Identity:
    """Create the file, and return what it says: another recorder may have been faster."""
    temporary = data_dir / f"{NAME}.{secrets.token_hex(4)}.tmp"
    files.write(temporary, msgspec.json.encode(identity))
    try:
        files.link_exclusively(temporary, data_dir / NAME)
    finally:
        files.remove([temporary])
    fsync_dir(data_dir)
    found = read(data_dir)
    assert found is not None
    return found


def _replace(data_dir: Path, identity: Identity) -> None:
    temporary = data_dir / f"{NAME}.{secrets.token_hex(4)}.tmp"
    files.write(temporary, msgspec.json.encode(identity))
    temporary.replace(data_dir / NAME)
    fsync_dir(data_dir)


async def _check_positions(data_dir: Path, link: Connection, keys: Keys, service: str, bus: str) -> None:
    """ConfigError if a folder from before this file cannot be that of the service on this bus: the service's
    positions there are ahead of those in the folder, which were always stored first.
    """
    recorded: dict[str, dict[str, StreamId] | None] = {
        folder.name: manifest.peek_positions(folder) for folder in (data_dir / "_manifests").glob("*/")
    }
    if not any(recorded.values()):
        return
    for name, position in (await read_positions(link, keys, service)).items():
        of_shard = recorded.get(keys.tag(keys.shard(Stream.parse(name).symbol)), {})
        here = None if of_shard is None else of_shard.get(name, START)
        if here is not None and position > here:
            raise ConfigError(
                f"--data-dir {data_dir}: service {service!r} of this bus has recorded {name} up to "
                f"{position}, this folder up to {here}: it belongs to another bus, or is an old copy; use "
                f'another --data-dir, or, if it is right, create {data_dir / NAME} with {{"bus": "{bus}"}}'
            )


def _refusal(data_dir: Path, known: Identity, other: str) -> ConfigError:
    where = f" at {known.server}, prefix {known.prefix!r}" if known.server else ""
    return ConfigError(
        f"--data-dir {data_dir} belongs to the bus with the id {known.bus}{where}, and {other}: rows of two "
        f"buses would mix; use another --data-dir, or delete {data_dir / NAME} if this bus replaces that one"
    )
