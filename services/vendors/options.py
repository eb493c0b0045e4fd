"""Vendor-specific options, and how they become options of the programs that speak the vendor's protocol."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints

import msgspec

from tickbus.errors import ConfigError
from tickbus.service.options import CommonOptions


class VendorOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options that only one vendor has, declared like any others, under names that say whose they are."""


NO_OPTIONS = VendorOptions()

O = TypeVar("O", bound=CommonOptions)
V = TypeVar("V", bound=VendorOptions)


def with_vendor_options(options: type[O], vendors: Mapping[str, type[VendorOptions]]) -> type[O]:
    """Return `options` extended by those of the vendors, each under its vendor's heading in --help."""
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


def select_vendor_options(options: CommonOptions, own: type[V]) -> V:
    """Return one vendor's part of options made by `with_vendor_options`."""
    return own(**{name: getattr(options, name) for name in own.__struct_fields__})


def reject_foreign_options(
    options: CommonOptions, vendors: Mapping[str, type[VendorOptions]], chosen: str, flag: str
) -> None:
    """Raise ConfigError if an option of a vendor other than `chosen` is set; `flag` chose the vendor."""
    for vendor, own in vendors.items():
        for field in msgspec.structs.fields(own):
            if vendor != chosen and getattr(options, field.name) != field.default:
                raise ConfigError(
                    f"--{field.name.replace('_', '-')} is an option of {vendor}, not of {chosen} ({flag}); "
                    "leave it out"
                )
