"""The vendor's names of the fields, or paths to them: `--json-fields price=p,trades=data.items`. Pure."""

from collections.abc import Iterator, Mapping

import msgspec

from services.vendors.frames import ABSENT, decode_fields, decode_items
from tickbus.errors import ConfigError

LISTS = {
    "trades": ("symbol", "price", "volume", "time", "side", "id"),
    "quotes": ("symbol", "bid", "bid_size", "ask", "ask_size", "time"),
}
"""The fields of an item, by the list that it stands in."""
NAMES = (
    *LISTS,
    *dict.fromkeys(name for names in LISTS.values() for name in names),
)
WHOLE = "."
"""The path of a list that is the frame itself."""

Path = tuple[str, ...]


def field_names(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return the vendor's name of every field, by our name. pairs: those that differ, `("price=p", ...)`.

    Raises ConfigError if they cannot work.
    """
    names = {name: name for name in NAMES}
    for pair in pairs:
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if ours not in names or not equals or not theirs:
            raise ConfigError(
                f"invalid --json-fields {pair}: expected ours=theirs, where ours is one of {', '.join(NAMES)}"
            )
        if theirs == WHOLE and ours not in LISTS:
            raise ConfigError(f"invalid --json-fields {pair}: only trades and quotes can be the whole frame")
        if theirs != WHOLE and "" in theirs.split("."):
            raise ConfigError(
                f"invalid --json-fields {pair}: expected a name, or names with dots between them: data.items"
            )
        names[ours] = theirs
    for scope in (tuple(LISTS), *LISTS.values()):
        _check_scope({name: names[name] for name in scope}, pairs)
    return names


def _check_scope(names: Mapping[str, str], pairs: tuple[str, ...]) -> None:
    """Check names that are looked up in the same object: none may be another, or lead through another."""
    paths = [(ours, path_of(theirs)) for ours, theirs in names.items()]
    if "trades" in names:
        paths.append(("error", ("error",)))
    for at, (ours, path) in enumerate(paths):
        for other, beside in paths[at + 1 :]:
            shorter = min(len(path), len(beside))
            if path == beside or (ours not in LISTS and path[:shorter] == beside[:shorter]):
                raise ConfigError(
                    f"invalid --json-fields {','.join(pairs)}: {ours} ({'.'.join(path)}) and {other} "
                    f"({'.'.join(beside)}) are the same field, or one is inside the other; "
                    "every field needs a place of its own"
                )


def path_of(name: str) -> Path:
    return () if name == WHOLE else tuple(name.split("."))


def has_paths(names: Mapping[str, str]) -> bool:
    return any("." in name for name in names.values())


def find(fields: Mapping[str, msgspec.Raw], path: Path) -> msgspec.Raw:
    """Return the raw value at a path in an object; ABSENT if there is none.

    A key may contain dots itself; a number in a path is a place in a list, from 0.
    """
    inner = fields.get(path[0])
    if len(path) == 1:
        return ABSENT if inner is None else inner
    if (found := fields.get(".".join(path))) is not None:
        return found
    for name in path[1:]:
        if inner is None:
            return ABSENT
        inner = _step(inner, name)
    return ABSENT if inner is None else inner


def find_all(fields: Mapping[str, msgspec.Raw], path: Path) -> Iterator[msgspec.Raw]:
    """Yield the raw values at a path in an object, which leads through every item of the lists on its way."""
    if (whole := fields.get(path[0] if len(path) == 1 else ".".join(path))) is not None:
        yield whole
    elif len(path) > 1 and (inner := fields.get(path[0])) is not None:
        yield from _find_in(inner, path[1:])


def _find_in(raw: msgspec.Raw, path: Path) -> Iterator[msgspec.Raw]:
    if (fields := decode_fields(raw)) is not None:
        yield from find_all(fields, path)
    elif not path[0].isdigit():
        for item in decode_items(raw) or ():
            yield from _find_in(item, path)
    elif (found := _step(raw, path[0])) is not None:
        if len(path) == 1:
            yield found
        else:
            yield from _find_in(found, path[1:])


def _step(raw: bytes | msgspec.Raw, name: str) -> msgspec.Raw | None:
    """Return a field of an object, or the item of a list with this number."""
    if (fields := decode_fields(raw)) is not None:
        return fields.get(name)
    items = decode_items(raw) if name.isascii() and name.isdigit() and len(name) < 6 else None
    return items[int(name)] if items is not None and int(name) < len(items) else None
