"""Two buses with one --spill-dir: what was spilled for one is never written into the other."""

from pathlib import Path

import msgspec
import pytest
from gateway.spill.spilled import entries, opened

from services.gateway.spill.recovery import SpillRecovery
from services.gateway.spill.segment import Bus, Header, Owner
from tickbus.protocol.names import Keys
from tickbus.writer.fences import Fence

KEYS = Keys(shards=8)
HERE = Bus("a1", "127.0.0.1:1/0, prefix tickbus")
EMPTIED = {shard: Fence(0, "") for shard in range(KEYS.shards)}


def found(folder: Path, spilled_for: Bus, fences: dict[int, Fence], bus: Bus = HERE) -> int:
    """Return how many spills a gateway on `bus` takes over."""
    spill = opened(folder, owner=Owner("vendor", 7, "host:1:ab", bus=spilled_for))
    assert spill.append(entries(1, 10))
    spill.close()
    recovery = SpillRecovery.find(folder, "vendor", KEYS, "host:2:cd", fences, bus)
    for _, taken in recovery.spills:
        taken.close()
    return len(recovery.spills)


@pytest.mark.parametrize(
    ("spilled_for", "taken"),
    [
        (HERE, 1),
        (HERE._replace(id=""), 1),
        (Bus(), 1),  # of an older version
        (HERE._replace(address="elsewhere"), 1),  # the bus has moved
        (HERE._replace(id="b2"), 0),
        (Bus("", "127.0.0.1:2/0, prefix tickbus"), 0),
        (Bus("", "127.0.0.1:1/0, prefix x"), 0),
    ],
)
def test_only_the_same_bus_may_have_lost_its_history(
    tmp_path: Path, spilled_for: Bus, taken: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert found(tmp_path, spilled_for, EMPTIED) == taken
    assert ("give the gateways of each bus their own --spill-dir" in caplog.text) == (not taken)
    assert len(list(tmp_path.glob("vendor/*/*.segment"))) == 1


def test_fence_of_the_gateway_that_spilled_proves_the_bus(tmp_path: Path) -> None:
    """Its address may have changed, and its id may be unknown."""
    fences = {shard: Fence(7, "host:1:ab") for shard in range(KEYS.shards)}
    assert found(tmp_path, Bus("", "elsewhere"), fences) == 1


def test_header_of_an_older_version_names_no_bus() -> None:
    old = msgspec.msgpack.encode([["vendor", 7, "host:1:ab", "a"], 3])
    assert msgspec.msgpack.decode(old, type=Header) == Header(Owner("vendor", 7, "host:1:ab", "a"), 3)
