"""Options from the command line, the environment and a TOML file (common options at its top, a program's own in its table).

Flags win over the environment, the environment over the file, the file over the default. Secrets can also stand in a file:
`--token-file`, `TICKBUS_TOKEN_FILE`, `token_file`. Whatever is wrong ends in one ConfigError line that names the place and says
what would be right.
"""

import argparse
import difflib
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from tickbus.errors import ConfigError
from tickbus.service.options import CommonOptions, Option, ServiceOptions
from tickbus.units import Duration, Size, format_duration, format_size, parse_duration, parse_size

_Given = tuple[str, str, object, object]
"""Where a value is given, what names the file that holds it there, the value, the file."""

O = TypeVar("O", bound=CommonOptions)


@dataclass(frozen=True)
class _Declared:
    name: str
    type: Any
    optional: bool
    option: Option
    default: object

    @property
    def key(self) -> str:
        """The field's name, less the underscore at the end of one that is a Python keyword."""
        return self.name.rstrip("_")

    @property
    def flag(self) -> str:
        return "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        return "TICKBUS_" + self.key.upper()

    def parse(self, value: object, where: str) -> object:
        """A text (or a TOML value) -> the field's value."""
        try:
            parsed = _PARSERS[self.type](value) if self.type in _PARSERS else _parse_other(self.type, value)
            if isinstance(parsed, int) and not isinstance(parsed, bool):
                low, high = self.option.minimum, self.option.maximum
                if (low is not None and parsed < low) or (high is not None and parsed > high):
                    bounds = [
                        f"{word} {self._show(bound)}"
                        for word, bound in (("at least", low), ("at most", high))
                        if bound is not None
                    ]
                    raise ValueError(f"{self._show(parsed)} is out of range; use {' and '.join(bounds)}")
            return parsed
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None

    def shown_default(self) -> str:
        if self.default is None or self.default == () or self.default == "":
            return ""
        if isinstance(self.default, tuple):
            return ",".join(map(str, self.default))
        return str(self.default).lower() if isinstance(self.default, bool) else self._show(self.default)

    def _show(self, value: object) -> str:
        """A value as it would be written on the command line."""
        if isinstance(value, int) and self.type in (Duration, Size):
            return format_duration(value) if self.type is Duration else format_size(value)
        return str(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text; put it in quotes")
    return value


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is no whole number")
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{value!r} is no whole number") from None


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    raise ValueError(f"{value!r} is neither true nor false")


def _texts(value: object) -> tuple[str, ...]:
    parts = value if isinstance(value, list) else _text(value).split(",")
    return tuple(_text(part).strip() for part in parts if _text(part).strip())


_PARSERS: dict[Any, Callable[[Any], object]] = {
    str: _text,
    int: _integer,
    bool: _boolean,
    Duration: lambda value: parse_duration(str(value)),
    Size: lambda value: Size(value) if type(value) is int else parse_size(str(value)),
    Path: lambda value: Path(_text(value)),
    tuple[str, ...]: _texts,
}


def _parse_other(kind: Any, value: object) -> object:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{value!r} is none of {', '.join(map(str, get_args(kind)))}")
        return value
    raise TypeError(f"options of type {kind} are not supported")


def declared(options: type[CommonOptions]) -> list[_Declared]:
    """The options of a class in the order of declaration."""
    hints = get_type_hints(options, include_extras=True)
    found = []
    for field in msgspec.structs.fields(options):
        kind, option = get_args(hints[field.name])
        optional = get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)
        if optional:
            (kind,) = (part for part in get_args(kind) if part is not NoneType)
        default = None if field.default is msgspec.NODEFAULT else field.default
        found.append(_Declared(field.name, kind, optional, option, default))
    return found


class _Parser(argparse.ArgumentParser):
    def print_help(self, file: object = None) -> None:
        # argparse's own hides that it could not be written
        print(self.format_help(), end="", flush=True)  # noqa: T201

    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            f"{' '.join(message.split())}; see {self.prog} --help"
        )  # one line, whatever was given


def load(
    options: type[O],
    part: str,
    argv: Sequence[str],
    *,
    environ: Mapping[str, str] = os.environ,
    tables: Mapping[str, type[CommonOptions]] | None = None,
    about: str = "",
    positionals: Sequence[tuple[str, str, str]] = (),
) -> O:
    """The options of `part` (`gateway`, ...) from its arguments, the environment and the file that `--config` names.

    `tables`: the options class of every part, to tell a misspelt table from another part's. `positionals`: (field, nargs,
    metavar) of the options that are given without a flag. `--help` prints and leaves with SystemExit, as is usual.
    """
    fields = declared(options)
    parser = _parser(part, fields, about, positionals, _chosen_group(fields, argv, environ))
    given = vars(
        parser.parse_args(_with_values(argv, {field.flag for field in fields if field.type is bool}))
    )
    path = given.pop("config") or environ.get("TICKBUS_CONFIG")
    from_file = _read_toml(Path(path), part, fields, tables or {part: options}) if path else {}
    values: dict[str, object] = {}
    for field in fields:
        sources: list[_Given] = [(field.flag, "-file", given.get(field.key), given.get(field.key + "_file"))]
        if field.name in {name for name, _, _ in positionals}:
            sources = [(field.name.upper(), "", given.get(field.name) or None, None)]
        sources.append(
            (
                field.variable,
                "_FILE",
                environ.get(field.variable) or None,
                environ.get(field.variable + "_FILE") or None,
            )
        )
        sources.append(
            (f"{path}: {field.key}", "_file", from_file.get(field.key), from_file.get(field.key + "_file"))
        )
        for where, as_file, value, file in sources:
            if file is not None and field.option.secret:
                if value is not None:
                    raise ConfigError(
                        f"{where}, {where}{as_file}: give the value or the file that holds it, not both"
                    )
                value = _read_secret(str(file), where + as_file)
            if value is not None:
                values[field.name] = field.parse(value, where)
                break
        else:
            if field.default is None and not field.optional:
                raise ConfigError(f"{sources[0][0]} is missing (also {field.variable}): {field.option.help}")
    return options(**values)  # type: ignore[arg-type]  # each was parsed by its declared type


_WORDS = {
    "true": True,
    "yes": True,
    "1": True,
    "on": True,
    "false": False,
    "no": False,
    "0": False,
    "off": False,
}


def _with_values(argv: Sequence[str], switches: set[str]) -> list[str]:
    """`--json BTC-USDT` -> `--json=true BTC-USDT`: what stands behind a switch is its value only if it can be one."""
    following = [*argv, ""][1:]
    return [
        f"{arg}=true" if arg in switches and next.lower() not in _WORDS else arg
        for arg, next in zip(argv, following, strict=True)
    ]


def _chosen_group(fields: list[_Declared], argv: Sequence[str], environ: Mapping[str, str]) -> str | None:
    """Return the group that `--help` is asked for, where an option that chooses one is given."""
    for field in fields:
        if field.option.chooses:
            behind = dict(pairwise(argv)).get(field.flag)
            joined = next(
                (word.partition("=")[2] for word in argv if word.startswith(f"{field.flag}=")), None
            )
            return behind or joined or environ.get(field.variable)
    return None


def _parser(
    part: str,
    fields: list[_Declared],
    about: str,
    positionals: Sequence[tuple[str, str, str]],
    chosen: str | None,
) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"tickbus {part}", description=about, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every option is also an environment variable (--metrics-port: TICKBUS_METRICS_PORT) and a key in the file of --config.",
    )  # fmt: skip
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="TOML file: common options at the top, the others in a table [" + part + "]",
    )
    places = {name: (nargs, metavar) for name, nargs, metavar in positionals}
    names = dict.fromkeys(field.option.group for field in fields if field.option.group)
    groups = {name: parser.add_argument_group(f"options of {name}") for name in names}
    for field in fields:
        to = groups.get(field.option.group, parser)
        text = field.option.help.replace("%", "%%")
        if default := field.shown_default():
            text += f" (default {default})"
        if chosen is not None and field.option.group not in ("", chosen):
            text = argparse.SUPPRESS
        if field.name in places:
            nargs, metavar = places[field.name]
            to.add_argument(field.name, nargs=nargs, metavar=metavar, help=text)
        elif field.type is bool:
            to.add_argument(
                field.flag, nargs="?", const="true", default=None, metavar="true|false", help=text
            )
        else:
            metavar = (
                "{" + ",".join(get_args(field.type)) + "}"
                if get_origin(field.type) is Literal
                else _metavar(field)
            )
            to.add_argument(field.flag, default=None, metavar=metavar, help=text)
            if field.option.secret:
                to.add_argument(
                    field.flag + "-file",
                    default=None,
                    metavar="FILE",
                    help=f"file that holds the value of {field.flag}",
                )
    return parser


def _metavar(field: _Declared) -> str:
    return {int: "N", Duration: "DURATION", Size: "SIZE", Path: "PATH", tuple[str, ...]: "A,B,..."}.get(
        field.type, "TEXT"
    )


def _read_secret(path: str, where: str) -> str:
    try:
        secret = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{where}: cannot read {path}: {getattr(error, 'strerror', None) or error}"
        ) from None
    if not secret:
        raise ConfigError(f"{where}: {path} is empty")
    return secret


def _read_toml(
    path: Path, part: str, fields: list[_Declared], tables: Mapping[str, type[CommonOptions]]
) -> dict[str, object]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML file: {error}") from None
    _each_once(path, content)
    common = {field.key for field in declared(ServiceOptions)}
    values: dict[str, object] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            if key not in tables:
                raise ConfigError(f"{path}: unknown table [{key}]{_near(key, tables)}")
            _each_once(path, value)
            names = {field.key for field in declared(tables[key])} | {
                field.key + "_file" for field in declared(tables[key]) if field.option.secret
            }
            for name in value:
                if name.replace("-", "_") not in names:
                    raise ConfigError(f"{path}: unknown key {name!r} in [{key}]{_near(name, names)}")
        elif key in tables:
            raise ConfigError(f"{path}: {key} is a part: its options stand below a line [{key}]")
        elif (name := key.replace("-", "_")) not in common | {"redis_file"}:
            near = _near(key, common) or "; a part's own options stand in its table"
            raise ConfigError(f"{path}: unknown key {key!r} at the top{near}")
        else:
            values[name] = value
    own = content.get(part, {})
    return values | {name.replace("-", "_"): value for name, value in own.items()}


def _each_once(path: Path, table: Mapping[str, object]) -> None:
    """`lease-ttl` and `lease_ttl` are one key."""
    for key in table:
        if "-" in key and (name := key.replace("-", "_")) in table:
            raise ConfigError(f"{path}: {key!r} and {name!r} are one option; leave one out")


def _near(word: str, known: Mapping[str, object] | set[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""
