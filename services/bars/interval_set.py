"""The intervals of a spec that Gaps have touched. Pure."""


class IntervalSet:
    """Ranges [start, end) of whole intervals, sorted and disjoint: adjacent ones are merged, so there are
    few of them however many Gaps there were.
    """

    def __init__(self, ranges: list[tuple[int, int]] | None = None) -> None:
        self.ranges = ranges or []

    def add(self, start: int, end: int) -> None:
        disjoint = []
        for low, high in self.ranges:
            if high < start or end < low:
                disjoint.append((low, high))
            else:
                start, end = min(start, low), max(end, high)
        self.ranges = sorted([*disjoint, (start, end)])

    def overlaps(self, start: int, end: int) -> bool:
        return any(low < end and start < high for low, high in self.ranges)

    def forget(self, until: int) -> None:
        """Drop the ranges that end at `until` or before."""
        if self.ranges and self.ranges[0][1] <= until:
            self.ranges = [(low, high) for low, high in self.ranges if high > until]
