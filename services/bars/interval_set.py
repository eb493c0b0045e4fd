"""Which intervals of a spec a Gap has touched. Pure."""


class Ranges:
    """Ranges [start, end) of whole intervals, in order, apart from each other: two that meet become one, so that there are few
    of them however many Gaps there were."""

    def __init__(self, ranges: list[tuple[int, int]] | None = None) -> None:
        self.ranges = ranges or []

    def add(self, start: int, end: int) -> None:
        apart = []
        for low, high in self.ranges:
            if high < start or end < low:
                apart.append((low, high))
            else:
                start, end = min(start, low), max(end, high)
        self.ranges = sorted([*apart, (start, end)])

    def touch(self, start: int, end: int) -> bool:
        return any(low < end and start < high for low, high in self.ranges)

    def forget(self, until: int) -> None:
        """Drop what ends at `until` or before."""
        if self.ranges and self.ranges[0][1] <= until:
            self.ranges = [(low, high) for low, high in self.ranges if high > until]
