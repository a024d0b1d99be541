"""Curves over the epochs of a training as inline SVG: loss, accuracy, learning rate, throughput.

As in ``charts``: pure functions from numbers to markup, colours from CSS classes, no ``style``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from markupsafe import Markup

Scale = Literal["linear", "log", "percent"]

_WIDTH: Final = 360
_HEIGHT: Final = 250
_LEFT: Final = 48
_RIGHT: Final = 350
_TOP: Final = 22
_BOTTOM: Final = 210

_POINTS_SHOWN: Final = 25
"""Up to this many epochs each has a dot, so that a single epoch is seen, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: a name for the legend, a CSS class, and a value an epoch (``None``: no value)."""

    name: str
    kind: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpan:
    """The epochs of a stage, as positions among all epochs, ``begin`` to before ``end``.

    ``best`` is the position of the epoch whose weights were kept, ``None`` where none was marked.
    """

    name: str
    begin: int
    end: int
    best: int | None


def epoch_curves(
    series: Sequence[Series], stages: Sequence[StageSpan], title: str, scale: Scale = "linear"
) -> Markup:
    """Draw lines over all epochs, with the stages as bands and the kept epoch of each marked.

    Values that are not finite leave a gap. Values of 0 or less leave one on a logarithmic scale.

    Args:
        series: the lines, first the one on which the kept epochs are marked.
        stages: where each stage begins and ends.
        title: what is drawn, for people who cannot see it.
        scale: of the vertical axis; ``percent`` takes values of 0–1.
    """
    num_epochs = max((stage.end for stage in stages), default=0)
    shown = [
        value
        for line in series
        for value in line.values
        if value is not None and _can_show(value, scale)
    ]
    axis = _Axis(shown, scale)
    across = _Across(num_epochs)
    content = _bands(stages, across)
    for tick, text in axis.ticks:
        y = axis.y(tick)
        content += Markup(
            '<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>'
            '<text class="end" x="{}" y="{:.1f}">{}</text>'
        ).format(_LEFT, y, _RIGHT, y, _LEFT - 6, y + 4, text)
    content += across.labels()
    for line in series:
        content += _line(line, axis, across)
    if series:
        content += _marks(series[0], stages, axis, across)
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">'
        "<title>{}</title>{}</svg>"
    ).format(_WIDTH, _HEIGHT, title, title, content)


def line_legend(series: Sequence[Series]) -> Markup:
    """Draw the legend of lines: one short stroke a line with its name."""
    return Markup().join(
        Markup(
            '<li><svg class="swatch long" viewBox="0 0 24 10" aria-hidden="true">'
            '<line class="curve {}" x1="0" y1="5" x2="24" y2="5"/></svg>{}</li>'
        ).format(line.kind, line.name)
        for line in series
    )


class _Across:
    """The horizontal axis: epochs, counted through all stages from 1."""

    def __init__(self, num_epochs: int) -> None:
        self.num_epochs = num_epochs
        self.step = (_RIGHT - _LEFT) / max(num_epochs, 1)

    def x(self, position: float) -> float:
        """Return the middle of an epoch by its position from 0."""
        return _LEFT + (position + 0.5) * self.step

    def labels(self) -> Markup:
        every = nice_step(self.num_epochs / 6) if self.num_epochs > 8 else 1
        every = max(1, round(every))
        content = Markup(
            '<line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/>'
            '<text class="middle" x="{:.1f}" y="{}">epoch, counted through all stages</text>'
        ).format(_LEFT, _BOTTOM, _RIGHT, _BOTTOM, (_LEFT + _RIGHT) / 2, _BOTTOM + 34)
        for number in range(1, self.num_epochs + 1):
            if number % every == 0 or (number == 1 and every > 2):
                content += Markup('<text class="middle" x="{:.1f}" y="{}">{}</text>').format(
                    self.x(number - 1), _BOTTOM + 17, number
                )
        return content


class _Axis:
    """The vertical axis: what lies where, and the ticks."""

    def __init__(self, values: Sequence[float], scale: Scale) -> None:
        self.scale = scale
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if scale == "log":
            if not values:
                low = high = 1.0
            self.low, self.high, self.ticks = log_ticks(low, high)
            return
        if scale == "percent":
            high = 1.0
        if high - low < 1e-9:
            low, high = low - max(abs(low), 1.0) * 0.05, high
        step = nice_step((high - low) / 4)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        self.low, self.high = first * step, last * step
        digits = max(0, -math.floor(math.log10(step * (100 if scale == "percent" else 1)) + 1e-9))
        unit, factor = (" %", 100) if scale == "percent" else ("", 1)
        self.ticks = [
            (i * step, f"{factor * i * step:.{digits}f}{unit}") for i in range(first, last + 1)
        ]

    def y(self, value: float) -> float:
        position, low, high = value, self.low, self.high
        if self.scale == "log":
            position, low, high = math.log10(value), math.log10(low), math.log10(high)
        return _BOTTOM - (_BOTTOM - _TOP) * (position - low) / (high - low)


def _bands(stages: Sequence[StageSpan], across: _Across) -> Markup:
    content = Markup()
    for i, stage in enumerate(stages):
        left = _LEFT + stage.begin * across.step
        width = (stage.end - stage.begin) * across.step
        content += Markup(
            '<rect class="stage{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}">'
            "<title>{}</title></rect>"
        ).format(" odd" if i % 2 else "", left, _TOP, width, _BOTTOM - _TOP, stage.name)
        # The stage's number always fits, its name where it has room: 6.2 units a letter.
        name = f"{i + 1} {stage.name}"
        text = name if 6.2 * len(name) < width else str(i + 1)
        content += Markup('<text class="middle" x="{:.1f}" y="{}">{}</text>').format(
            left + width / 2, _TOP - 7, text
        )
    return content


def _line(line: Series, axis: _Axis, across: _Across) -> Markup:
    """Draw one line, in pieces where values are missing."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for position, value in enumerate(line.values):
        if value is None or not _can_show(value, axis.scale):
            pieces.append([])
        else:
            pieces[-1].append((across.x(position), axis.y(value)))
    content = Markup()
    for piece in pieces:
        if len(piece) > 1:
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in piece)
            content += Markup('<polyline class="curve {}" points="{}"/>').format(line.kind, points)
        if piece and (len(piece) == 1 or len(line.values) <= _POINTS_SHOWN):
            for x, y in piece:
                content += Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="2"/>').format(
                    line.kind, x, y
                )
    return content


def _marks(line: Series, stages: Sequence[StageSpan], axis: _Axis, across: _Across) -> Markup:
    content = Markup()
    for stage in stages:
        value = line.values[stage.best] if stage.best is not None else None
        if stage.best is None or value is None or not _can_show(value, axis.scale):
            continue
        content += Markup(
            '<circle class="kept" cx="{:.1f}" cy="{:.1f}" r="5.5">'
            "<title>kept: epoch {} of stage {}</title></circle>"
        ).format(across.x(stage.best), axis.y(value), stage.best - stage.begin + 1, stage.name)
    return content


def _can_show(value: float, scale: Scale) -> bool:
    return math.isfinite(value) and (scale != "log" or value > 0)


def nice_step(about: float) -> float:
    """Return the least of 1, 2 or 5 times a power of ten that is not below ``about``."""
    power = 10.0 ** math.floor(math.log10(about)) if about > 0 else 1.0
    return next(f * power for f in (1, 2, 5, 10) if f * power >= about * (1 - 1e-9))


def log_ticks(low: float, high: float) -> tuple[float, float, list[tuple[float, str]]]:
    """Return the ends of a logarithmic axis and its ticks: powers of ten, or 1-2-5 where few."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    every = math.ceil((last - first) / 6)
    ticks = [
        (f * 10.0**power, f"{f}e{power}" if abs(power) > 2 else f"{f * 10.0**power:g}")
        for power in range(first, last + 1, every)
        for f in factors
        if f * 10.0**power <= 10.0**last
    ]
    return 10.0**first, 10.0**last, ticks
