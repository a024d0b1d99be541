"""Points against one quantity as inline SVG: what a setting had to do with a figure.

As in ``charts``: pure functions from numbers to markup, colours from CSS classes, no ``style``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from bloodcells.report.curves import log_ticks, nice_step

_WIDTH: Final = 360
_HEIGHT: Final = 250
_LEFT: Final = 52
_RIGHT: Final = 350
_TOP: Final = 14
_BOTTOM: Final = 205
_PLACES: Final = 0.6
"""Share of a name's place that its points are spread over, so that equal ones are seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point: where it is, a CSS class, what it is, and whether a ring is drawn around it."""

    x: float | str
    y: float
    kind: str
    title: str
    is_marked: bool = False


Ticks = list[tuple[float, str]]


def scatter(points: Sequence[Point], label: str, title: str, *, is_log: bool, unit: str) -> Markup:
    """Draw points, with names or numbers on the horizontal axis.

    Args:
        points: all with a number as ``x`` (finite, above 0 where ``is_log``), or all with a name.
        label: what the horizontal axis is.
        title: what is drawn, for people who cannot see it.
        is_log: whether the horizontal axis is logarithmic.
        unit: of the vertical axis: ``percent`` takes values of 0–1, ``number`` any.
    """
    names = list(dict.fromkeys(p.x for p in points if isinstance(p.x, str)))
    if names:
        across, ticks = _of_names(points, names)
    else:
        across, ticks = _of_numbers([float(p.x) for p in points], is_log)
    heights, levels = _upwards([p.y for p in points], unit)
    content = Markup()
    for y, text in levels:
        content += Markup(
            '<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>'
            '<text class="end" x="{}" y="{:.1f}">{}</text>'
        ).format(_LEFT, y, _RIGHT, y, _LEFT - 6, y + 4, text)
    content += Markup('<line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
        _LEFT, _BOTTOM, _RIGHT, _BOTTOM
    )
    for x, text in ticks:
        content += Markup('<text class="middle" x="{:.1f}" y="{}">{}</text>').format(
            x, _BOTTOM + 17, text
        )
    content += Markup('<text class="middle" x="{}" y="{}">{}</text>').format(
        (_LEFT + _RIGHT) / 2, _BOTTOM + 36, label
    )
    for point, x, y in zip(points, across, heights, strict=True):
        content += Markup(
            '<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.5"><title>{}</title></circle>'
        ).format(point.kind, x, y, point.title)
        if point.is_marked:
            content += Markup('<circle class="kept" cx="{:.1f}" cy="{:.1f}" r="7"/>').format(x, y)
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">'
        "<title>{}</title>{}</svg>"
    ).format(_WIDTH, _HEIGHT, title, title, content)


def _of_names(points: Sequence[Point], names: Sequence[str]) -> tuple[list[float], Ticks]:
    """Return where points lie that have names, those of one name side by side."""
    place = (_RIGHT - _LEFT) / len(names)
    seen = dict.fromkeys(names, 0)
    totals = {name: sum(p.x == name for p in points) for name in names}
    across = []
    for point in points:
        name = str(point.x)
        seen[name] += 1
        share = seen[name] / (totals[name] + 1) - 0.5
        across.append(_LEFT + place * (names.index(name) + 0.5 + _PLACES * share))
    return across, [(_LEFT + place * (i + 0.5), name) for i, name in enumerate(names)]


def _of_numbers(values: Sequence[float], is_log: bool) -> tuple[list[float], Ticks]:
    if is_log:
        low, high = _apart(math.log10(min(values)), math.log10(max(values)))
        _, _, known = log_ticks(10**low, 10**high)
        places = [math.log10(value) for value in values]
        marks = [(math.log10(value), text) for value, text in known]
    else:
        low, high = _apart(min(values), max(values))
        step = nice_step((high - low) / 6)
        places = list(values)
        marks = [(i * step, f"{i * step:g}") for i in range(math.ceil(low / step), 99)]

    def x(place: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (place - low) / (high - low)

    ticks = [(x(place), text) for place, text in marks if low <= place <= high]
    # Numbers of five letters need some 45 units each.
    thinned = ticks[:: math.ceil(len(ticks) / 6)] if ticks else []
    return [x(place) for place in places], thinned


def _upwards(values: Sequence[float], unit: str) -> tuple[list[float], Ticks]:
    low, high = _apart(min(values), max(values))
    step = nice_step((high - low) / 6)
    factor, sign = (100, " %") if unit == "percent" else (1, "")
    digits = max(0, -math.floor(math.log10(step * factor) + 1e-9))

    def y(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low)

    count = math.floor((high - low) / step) + 2
    marks = [step * (math.ceil(low / step) + i) for i in range(count)]
    return [y(value) for value in values], [
        (y(mark), f"{factor * mark:.{digits}f}{sign}") for mark in marks if mark <= high
    ]


def _apart(low: float, high: float) -> tuple[float, float]:
    """Return ends with a little room at both sides."""
    room = 0.06 * (high - low) or max(abs(low) * 0.05, 0.01)
    return low - room, high + room
