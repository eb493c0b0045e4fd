"""The registry of feeds."""

from services.gateway.feeds.alltick import AllTick
from services.gateway.feeds.base import Feed
from services.gateway.feeds.binance import Binance
from services.gateway.feeds.json import Json
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
