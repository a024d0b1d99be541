"""From raw times to steady speeds, ratios and the table that is printed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.contenders import Contender

MIB: Final = 2**20

LIMIT_EAGER: Final = (
    "bare_eager",
    "bare_eager_per_core",
    "bare_folded",
    "bare_folded_per_core",
)
LIMIT_COMPILED: Final = ("bare_compiled", "bare_compiled_per_core")
RIVALS: Final = ("plain", "ray_recipe", "daft")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One process that ran to its end.

    Attributes:
        contender: who.
        round: from 1; 0 is the first start, with cold caches, that no speed is taken from.
        num_images: images classified.
        seconds: wall time of the process.
        driver_rss_bytes, workers_uss_bytes, workers_rss_bytes, num_workers, num_left_over,
            sampling_share: see :class:`benchmarks.processes.Finished`.
    """

    contender: str
    round: int
    num_images: int
    seconds: float
    driver_rss_bytes: int
    workers_uss_bytes: int
    workers_rss_bytes: int
    num_workers: int
    num_left_over: int
    sampling_share: float


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median, least and most over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarise one or more values."""
        known = list(values)
        return cls(median=statistics.median(known), low=min(known), high=max(known))

    def text(self, digits: int = 0) -> str:
        """Return ``median (low–high)``."""
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}–{self.high:,.{digits}f})"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A ratio that the project promises.

    Attributes:
        what: what is divided by what.
        target: what it must reach, in words.
        above, below: contenders; the fastest of each side counts, round by round.
    """

    what: str
    target: str
    above: tuple[str, ...]
    below: tuple[str, ...]


JUDGED: Final[tuple[Judged, ...]] = (
    Judged(
        what="ours / eager limit (best of bare eager and folded, whole and per core)",
        target="tf_efficientnetv2_m: 0.93",
        above=("ours",),
        below=LIMIT_EAGER,
    ),
    Judged(
        what="ours compiled / compiled limit (best of whole and per core)",
        target="tf_efficientnetv2_m: 0.93, aim 0.95",
        above=("ours_compiled",),
        below=LIMIT_COMPILED,
    ),
    Judged(
        what="ours, the better of both / compiled limit",
        target="tf_efficientnetv2_m: aim 0.95",
        above=("ours", "ours_compiled"),
        below=LIMIT_COMPILED,
    ),
    Judged(
        what="ours / best of plain, ray_recipe, daft",
        target="tf_efficientnet_lite0: 1.5, aim 2",
        above=("ours",),
        below=RIVALS,
    ),
    Judged(
        what="ours / plain_our_decoder",
        target="tf_efficientnet_lite0: 0.95",
        above=("ours",),
        below=("plain_our_decoder",),
    ),
    Judged(
        what="ours / plain_our_decoder_folded",
        target="none; the hardest rival",
        above=("ours",),
        below=("plain_our_decoder_folded",),
    ),
)


def steady_speed(small: Timing, large: Timing) -> float | None:
    """Return images a second between the two sizes, where start-up has cancelled out.

    ``None`` if the large run took no longer than the small one: noise outweighed the images.
    """
    seconds = large.seconds - small.seconds
    return (large.num_images - small.num_images) / seconds if seconds > 0 else None


def speeds(timings: Sequence[Timing]) -> dict[str, dict[int, float]]:
    """Return steady images a second, by contender and round; only rounds with both sizes.

    A contender with a round that noise made void is left out altogether: to drop only its luckiest
    rounds, or its unluckiest, would be no measurement.
    """
    found: dict[str, dict[int, float]] = {}
    void: set[str] = set()
    for small, large in _pairs(timings):
        speed = steady_speed(small, large)
        if speed is None:
            void.add(large.contender)
        else:
            found.setdefault(large.contender, {})[large.round] = speed
    return {name: by_round for name, by_round in found.items() if name not in void}


def summary(timings: Sequence[Timing]) -> dict[str, dict[str, Any]]:
    """Return, by contender, the figures of the table: a :class:`Spread`, a number, or ``None``."""
    figures: dict[str, dict[str, Any]] = {}
    steady = speeds(timings)
    for name in dict.fromkeys(large.contender for _, large in _pairs(timings)):
        larges = [large for _, large in _pairs(timings) if large.contender == name]
        own = [timing for timing in timings if timing.contender == name]
        by_round = steady.get(name)
        startups = by_round and [
            large.seconds - large.num_images / by_round[large.round] for large in larges
        ]
        figures[name] = {
            "images_per_second": Spread.of(by_round.values()) if by_round else None,
            "startup_seconds": Spread.of(startups) if startups else None,
            "total_seconds": Spread.of(large.seconds for large in larges),
            "first_start_seconds": next((t.seconds for t in own if t.round == 0), None),
            "driver_rss_mib": max(timing.driver_rss_bytes for timing in own) / MIB,
            "workers_uss_mib": max(timing.workers_uss_bytes for timing in own) / MIB,
            "workers_rss_mib": max(timing.workers_rss_bytes for timing in own) / MIB,
            "num_workers": max(timing.num_workers for timing in own),
        }
    return figures


def ratio(judged: Judged, timings: Sequence[Timing]) -> Spread | None:
    """Return a ratio, taken within each round; ``None`` where a side was not measured."""
    found = speeds(timings)
    above = [found[name] for name in judged.above if name in found]
    below = [found[name] for name in judged.below if name in found]
    if not above or not below:
        return None
    rounds = set.intersection(*(set(by_round) for by_round in (*above, *below)))
    ratios = [
        max(by_round[r] for by_round in above) / max(by_round[r] for by_round in below)
        for r in sorted(rounds)
    ]
    return Spread.of(ratios) if ratios else None


def table(contenders: Sequence[Contender], timings: Sequence[Timing]) -> str:
    """Return the table of everybody's figures, for a terminal."""
    figures = summary(timings)
    columns: list[tuple[str, str, int]] = [
        ("images/s", "images_per_second", 0),
        ("start-up s", "startup_seconds", 1),
        ("total s", "total_seconds", 1),
        ("first s", "first_start_seconds", 1),
        ("driver MiB", "driver_rss_mib", 0),
        ("workers MiB", "workers_uss_mib", 0),
        ("workers", "num_workers", 0),
    ]
    known = [contender for contender in contenders if contender.name in figures]
    rows = [["", *(title for title, _, _ in columns), ""]]
    rows += [
        [c.name, *(_cell(figures[c.name][key], digits) for _, key, digits in columns), c.what]
        for c in known
    ]
    return aligned(rows)


def ratio_table(timings: Sequence[Timing]) -> str:
    """Return the judged ratios, for a terminal."""
    rows = [["ratio of steady images/s", "", "target"]]
    for judged in JUDGED:
        spread = ratio(judged, timings)
        rows.append([judged.what, spread.text(3) if spread else "no measurement", judged.target])
    return aligned(rows)


def _cell(value: Spread | float | None, digits: int) -> str:
    if value is None:
        return "void"
    return value.text(digits) if isinstance(value, Spread) else f"{value:,.{digits}f}"


def _pairs(timings: Sequence[Timing]) -> list[tuple[Timing, Timing]]:
    """Return the small and the large process of each contender and round."""
    groups: dict[tuple[str, int], list[Timing]] = {}
    for timing in timings:
        if timing.round:
            groups.setdefault((timing.contender, timing.round), []).append(timing)
    ordered = (sorted(group, key=lambda timing: timing.num_images) for group in groups.values())
    return [(group[0], group[-1]) for group in ordered if len(group) == 2]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lay out cells in columns, the first and the last flush left."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    last = len(widths) - 1
    lines = [
        "  ".join(
            cell.ljust(width) if k in (0, last) else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)
