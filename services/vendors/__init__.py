"""The registry of feeds."""

from services.vendors.alltick.client import AllTick
from services.vendors.binance.client import Binance
from services.vendors.feed import Feed
from services.vendors.json.client import Json
from tickbus.errors import ConfigError

FEEDS: dict[str, type[Feed]] = {
    "alltick": AllTick,
    "binance": Binance,
    "json": Json,
}


def feed_class(name: str) -> type[Feed]:
    try:
        return FEEDS[name]
    except KeyError:
        raise ConfigError(f"--feed {name}: unknown; there are {', '.join(FEEDS)}") from None
