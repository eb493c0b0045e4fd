"""Samples, medians and ratios, and how they are printed. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Figure:
    """A measured quantity: one sample per round."""

    name: str
    unit: str
    samples: tuple[float, ...]

    def line(self) -> str:
        return f"  {self.name:46} {_short(median(self.samples)):>12} {self.unit:10} {_spread(self.samples)}"


@dataclass(frozen=True)
class Ratio:
    """The quotient of two quantities of the same round; `wanted` is what the project promises."""

    name: str
    samples: tuple[float, ...]
    wanted: float | None = None
    at_most: bool = False
    """The promise is an upper bound."""

    @property
    def value(self) -> float:
        return median(self.samples)

    @property
    def verdict(self) -> str:
        if self.wanted is None:
            return ""
        met = self.value <= self.wanted if self.at_most else self.value >= self.wanted
        return f"wanted {'<=' if self.at_most else '>='} {self.wanted:g}: {'met' if met else 'MISSED'}"

    def line(self) -> str:
        spread = _spread(self.samples)
        return f"  {self.name:46} {self.value:>12.3f} {'x':10} {spread:26} {self.verdict}".rstrip()


@dataclass
class Part:
    """The results of one part of the suite."""

    name: str
    about: str
    figures: list[Figure] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def figure(self, name: str, unit: str, samples: Sequence[float]) -> None:
        self.figures.append(Figure(name, unit, tuple(samples)))

    def ratio(
        self,
        name: str,
        numerator: Sequence[float],
        denominator: Sequence[float],
        wanted: float | None = None,
        at_most: bool = False,
    ) -> None:
        """Add a ratio, round by round: what disturbs the machine for a while disturbs both sides."""
        self.ratios.append(
            Ratio(name, tuple(a / b for a, b in zip(numerator, denominator, strict=True)), wanted, at_most)
        )

    def as_json(self) -> dict[str, object]:
        return {
            "part": self.name,
            "about": self.about,
            "figures": [
                {
                    "name": figure.name,
                    "unit": figure.unit,
                    "median": median(figure.samples),
                    "samples": figure.samples,
                }
                for figure in self.figures
            ],
            "ratios": [
                {
                    "name": ratio.name,
                    "median": ratio.value,
                    "samples": ratio.samples,
                    "wanted": ratio.wanted,
                    "at_most": ratio.at_most,
                }
                for ratio in self.ratios
            ],
            "notes": self.notes,
        }


def table(parts: Sequence[Part]) -> str:
    lines = []
    for part in parts:
        lines += [
            f"{part.name}: {part.about}",
            *(figure.line() for figure in part.figures),
            *(ratio.line() for ratio in part.ratios),
        ]
        lines += [f"  note: {note}" for note in part.notes] + [""]
    return "\n".join(lines)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of sorted values: 0.5 is the median."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _spread(samples: Sequence[float]) -> str:
    return f"({_short(min(samples))} .. {_short(max(samples))})" if len(samples) > 1 else ""
