"""Options from the command line, the environment and a TOML file (common ones at its top, others in a table).

Flags take precedence over the environment, the environment over the file, the file over the default. Secrets
can also be read from a file: `--token-file`, `TICKBUS_TOKEN_FILE`, `token_file`. Every mistake ends in a
ConfigError of one line that names the place and says what is expected.
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
from tickbus.sanitize import SECRETS
from tickbus.service.options import CommonOptions, Option, ServiceOptions
from tickbus.units import Duration, Size, format_duration, format_size, parse_duration, parse_size

_Source = tuple[str, str, object, object]
"""Where a value is set, the suffix there for a file that contains it, the value, the file."""

O = TypeVar("O", bound=CommonOptions)


@dataclass(frozen=True)
class _DeclaredOption:
    name: str
    type: Any
    optional: bool
    option: Option
    default: object

    @property
    def key(self) -> str:
        """The field's name, without the trailing underscore of one that is a Python keyword."""
        return self.name.rstrip("_")

    @property
    def flag(self) -> str:
        return "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        return "TICKBUS_" + self.key.upper()

    def parse(self, value: object, where: str) -> object:
        """Return the field's value for a text (or a TOML value). ConfigError if it is invalid."""
        try:
            parsed = _PARSERS[self.type](value) if self.type in _PARSERS else _parse_other(self.type, value)
            if isinstance(parsed, int) and not isinstance(parsed, bool):
                low, high = self.option.minimum, self.option.maximum
                if (low is not None and parsed < low) or (high is not None and parsed > high):
                    bounds = [
                        f"{word} {self._format(bound)}"
                        for word, bound in (("at least", low), ("at most", high))
                        if bound is not None
                    ]
                    raise ValueError(
                        f"{self._format(parsed)} is out of range: expected {' and '.join(bounds)}"
                    )
            return parsed
        except ValueError as error:
            if self.option.secret and not isinstance(value, str):
                raise ConfigError(f"{where}: expected text; put it in quotes") from None
            raise ConfigError(f"{where}: {error}") from None

    def default_text(self) -> str:
        """Return the default as it would be written on the command line; empty if there is none."""
        if self.default is None or self.default == () or self.default == "":
            return ""
        if isinstance(self.default, tuple):
            return ",".join(map(str, self.default))
        return str(self.default).lower() if isinstance(self.default, bool) else self._format(self.default)

    def _format(self, value: object) -> str:
        """Return a value as it would be written on the command line."""
        if isinstance(value, int) and self.type in (Duration, Size):
            return format_duration(value) if self.type is Duration else format_size(value)
        return str(value)


def _parse_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"invalid value {value!r}: expected text; put it in quotes")
    return value


def _parse_integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"invalid value {value!r}: expected a whole number")
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"invalid value {value!r}: expected a whole number") from None


def _parse_boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _BOOLEANS:
        return _BOOLEANS[value.lower()]
    raise ValueError(f"invalid value {value!r}: expected true or false")


def _parse_texts(value: object) -> tuple[str, ...]:
    parts = value if isinstance(value, list) else _parse_text(value).split(",")
    return tuple(_parse_text(part).strip() for part in parts if _parse_text(part).strip())


_PARSERS: dict[Any, Callable[[Any], object]] = {
    str: _parse_text,
    int: _parse_integer,
    bool: _parse_boolean,
    Duration: lambda value: parse_duration(str(value)),
    Size: lambda value: Size(value) if type(value) is int else parse_size(str(value)),
    Path: lambda value: Path(_parse_text(value)),
    tuple[str, ...]: _parse_texts,
}


def _parse_other(kind: Any, value: object) -> object:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            choices = ", ".join(map(str, get_args(kind)))
            raise ValueError(f"invalid value {value!r}: expected one of {choices}")
        return value
    raise TypeError(f"options of type {kind} are not supported")


def declared_options(options: type[CommonOptions]) -> list[_DeclaredOption]:
    """Return the options of a class in the order of declaration."""
    hints = get_type_hints(options, include_extras=True)
    found = []
    for field in msgspec.structs.fields(options):
        kind, option = get_args(hints[field.name])
        optional = get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)
        if optional:
            (kind,) = (member for member in get_args(kind) if member is not NoneType)
        default = None if field.default is msgspec.NODEFAULT else field.default
        found.append(_DeclaredOption(field.name, kind, optional, option, default))
    return found


class _Parser(argparse.ArgumentParser):
    def print_help(self, file: object = None) -> None:
        # argparse's own method hides that the text could not be written
        print(self.format_help(), end="", flush=True)  # noqa: T201

    def error(self, message: str) -> NoReturn:
        # one line, whatever the arguments contain
        raise ConfigError(f"{' '.join(message.split())}; see {self.prog} --help")


def load(
    options: type[O],
    command: str,
    argv: Sequence[str],
    *,
    environ: Mapping[str, str] = os.environ,
    tables: Mapping[str, type[CommonOptions]] | None = None,
    about: str = "",
    positionals: Sequence[tuple[str, str, str]] = (),
) -> O:
    """Return the options of `command` from its arguments, the environment and the file of `--config`.

    command: `gateway`, `bars`, ...
    tables: the options class of every command, to distinguish a misspelt table from another command's.
    positionals: (field, nargs, metavar) of the options that are given without a flag.

    Errors: ConfigError for whatever is missing, unknown or invalid. `--help` prints and raises SystemExit, as
    usual.
    """
    fields = declared_options(options)
    parser = _parser(command, fields, about, positionals, _chosen_group(fields, argv, environ))
    flags = vars(
        parser.parse_args(_with_explicit_values(argv, {field.flag for field in fields if field.type is bool}))
    )
    path = flags.pop("config") or environ.get("TICKBUS_CONFIG")
    from_file = _read_toml(Path(path), command, fields, tables or {command: options}) if path else {}
    values: dict[str, object] = {}
    for field in fields:
        sources: list[_Source] = [(field.flag, "-file", flags.get(field.key), flags.get(field.key + "_file"))]
        if field.name in {name for name, _, _ in positionals}:
            sources = [(field.name.upper(), "", flags.get(field.name) or None, None)]
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
        for where, file_suffix, value, file in sources:
            if file is not None and field.option.secret:
                if value is not None:
                    raise ConfigError(
                        f"{where}, {where}{file_suffix}: give the value or a file that contains it, not both"
                    )
                value = _read_secret(str(file), where + file_suffix)
            if value is not None:
                values[field.name] = parsed = field.parse(value, where)
                _register(field.option, parsed)
                break
        else:
            if field.default is None and not field.optional:
                raise ConfigError(f"{sources[0][0]} is missing (also {field.variable}): {field.option.help}")
    return options(**values)  # type: ignore[arg-type]  # each was parsed by its declared type


_BOOLEANS = {
    "true": True,
    "yes": True,
    "1": True,
    "on": True,
    "false": False,
    "no": False,
    "0": False,
    "off": False,
}


def _with_explicit_values(argv: Sequence[str], switches: set[str]) -> list[str]:
    """Turn `--json BTC-USDT` into `--json=true BTC-USDT`: what follows a switch may not be its value."""
    following = [*argv, ""][1:]
    return [
        f"{arg}=true" if arg in switches and next.lower() not in _BOOLEANS else arg
        for arg, next in zip(argv, following, strict=True)
    ]


def _chosen_group(
    fields: list[_DeclaredOption], argv: Sequence[str], environ: Mapping[str, str]
) -> str | None:
    """Return the group that `--help` shows, if the option that selects it is given."""
    for field in fields:
        if field.option.selects_group:
            separate = dict(pairwise(argv)).get(field.flag)
            joined = next(
                (word.partition("=")[2] for word in argv if word.startswith(f"{field.flag}=")), None
            )
            return separate or joined or environ.get(field.variable)
    return None


def _parser(
    command: str,
    fields: list[_DeclaredOption],
    about: str,
    positionals: Sequence[tuple[str, str, str]],
    chosen: str | None,
) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"tickbus {command}", description=about, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every option is also an environment variable (--metrics-port: TICKBUS_METRICS_PORT) and a "
        "key in the file of --config.",
    )  # fmt: skip
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"TOML file: common options at the top, the others in a table [{command}]",
    )
    positional_forms = {name: (nargs, metavar) for name, nargs, metavar in positionals}
    names = dict.fromkeys(field.option.group for field in fields if field.option.group)
    groups = {name: parser.add_argument_group(f"options of {name}") for name in names}
    for field in fields:
        section = groups.get(field.option.group, parser)
        text = field.option.help.replace("%", "%%")
        if default := field.default_text():
            text += f" (default {default})"
        if chosen is not None and field.option.group not in ("", chosen):
            text = argparse.SUPPRESS
        if field.name in positional_forms:
            nargs, metavar = positional_forms[field.name]
            section.add_argument(field.name, nargs=nargs, metavar=metavar, help=text)
        elif field.type is bool:
            section.add_argument(
                field.flag, nargs="?", const="true", default=None, metavar="true|false", help=text
            )
        else:
            metavar = (
                "{" + ",".join(get_args(field.type)) + "}"
                if get_origin(field.type) is Literal
                else _metavar(field)
            )
            section.add_argument(field.flag, default=None, metavar=metavar, help=text)
            if field.option.secret:
                section.add_argument(
                    field.flag + "-file",
                    default=None,
                    metavar="FILE",
                    help=f"file that contains the value of {field.flag}",
                )
    return parser


def _metavar(field: _DeclaredOption) -> str:
    return {int: "N", Duration: "DURATION", Size: "SIZE", Path: "PATH", tuple[str, ...]: "A,B,..."}.get(
        field.type, "TEXT"
    )


def _register(option: Option, value: object) -> None:
    """Register what must not be shown: a secret, or those in a URL."""
    if isinstance(value, str) and "://" in value:
        SECRETS.add_url(value)
    elif isinstance(value, str) and option.secret and value.lower() not in ("none", "null"):
        SECRETS.add(value)


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
    path: Path, command: str, fields: list[_DeclaredOption], tables: Mapping[str, type[CommonOptions]]
) -> dict[str, object]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"invalid TOML file {path}: {error}") from None
    _check_duplicates(path, content)
    common = {field.key for field in declared_options(ServiceOptions)}
    values: dict[str, object] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            if key not in tables:
                raise ConfigError(f"{path}: unknown table [{key}]{_suggest(key, tables)}")
            _check_duplicates(path, value)
            names = {field.key for field in declared_options(tables[key])} | {
                field.key + "_file" for field in declared_options(tables[key]) if field.option.secret
            }
            for name in value:
                if name.replace("-", "_") not in names:
                    raise ConfigError(f"{path}: unknown key {name!r} in [{key}]{_suggest(name, names)}")
        elif key in tables:
            raise ConfigError(f"{path}: {key!r} is a command: put its options in a table [{key}]")
        elif (name := key.replace("-", "_")) not in common | {"redis_file"}:
            hint = _suggest(key, common) or "; put a command's own options in its table"
            raise ConfigError(f"{path}: unknown key {key!r} at the top{hint}")
        else:
            values[name] = value
    own = content.get(command, {})
    return values | {name.replace("-", "_"): value for name, value in own.items()}


def _check_duplicates(path: Path, table: Mapping[str, object]) -> None:
    """ConfigError if a key is given twice: `lease-ttl` and `lease_ttl` are the same."""
    for key in table:
        if "-" in key and (name := key.replace("-", "_")) in table:
            raise ConfigError(f"{path}: {key!r} and {name!r} are the same option; remove one")


def _suggest(word: str, known: Mapping[str, object] | set[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""
