"""How long entries are retained on the bus. Pure."""

from dataclasses import dataclass

from tickbus.units import SECOND, Duration, Size


@dataclass(frozen=True)
class Retention:
    """How long a writer retains the entries of its streams."""

    age: Duration
    entries: int
    """Per stream."""
    bytes: Size = Size(0)
    """For all streams together; 0 = unlimited."""
    interval: Duration = Duration(30 * SECOND)
    """Time between two sweeps."""
