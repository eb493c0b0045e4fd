"""How long entries stay on the bus. Pure."""

from dataclasses import dataclass

from tickbus.units import SECOND, Duration, Size


@dataclass(frozen=True)
class Retention:
    """How long a writer keeps the entries of its streams."""

    age: Duration
    entries: int
    """Per stream."""
    bytes: Size = Size(0)
    """For all streams together; 0 = no bound."""
    interval: Duration = Duration(30 * SECOND)
    """How often they are swept."""
