"""What a vendor's own options are, and how they become options of the programs that speak its protocol."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints

import msgspec

from tickbus.errors import ConfigError
from tickbus.service.options import CommonOptions


class VendorOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options that only one vendor has. Each field is declared like those of any program, under a name that says whose it is."""


NO_OPTIONS = VendorOptions()

O = TypeVar("O", bound=CommonOptions)
V = TypeVar("V", bound=VendorOptions)


def with_vendors(options: type[O], vendors: Mapping[str, type[VendorOptions]]) -> type[O]:
    """Return `options` with those of the vendors behind them, each in its vendor's group of --help."""
    fields: list[tuple[str, Any, Any]] = []
    for vendor, own in vendors.items():
        hints = get_type_hints(own, include_extras=True)
        for field in msgspec.structs.fields(own):
            kind, option = get_args(hints[field.name])
            fields.append(
                (field.name, Annotated[kind, msgspec.structs.replace(option, group=vendor)], field.default)
            )
    combined = msgspec.defstruct(
        options.__name__,
        fields,
        bases=(options,),
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
        module=options.__module__,
    )
    return cast(type[O], combined)


def of_vendor(options: CommonOptions, own: type[V]) -> V:
    """Return the vendor's own part of options made by `with_vendors`."""
    return own(**{name: getattr(options, name) for name in own.__struct_fields__})


def check_foreign(
    options: CommonOptions, vendors: Mapping[str, type[VendorOptions]], chosen: str, flag: str
) -> None:
    """ConfigError if an option of another vendor than the `chosen` one is set; `flag` is the one that chose it."""
    for vendor, own in vendors.items():
        for field in msgspec.structs.fields(own):
            if vendor != chosen and getattr(options, field.name) != field.default:
                raise ConfigError(
                    f"--{field.name.replace('_', '-')} is an option of {vendor}, not of {chosen} ({flag}); leave it out"
                )
