"""Charts as inline SVG. Pure functions from numbers to markup; every text is escaped.

Charts that stretch with the page (bars, intervals) hold no text, so that none is ever distorted or
too small on a phone: their numbers stand beside them in HTML. Charts with axes keep their
proportions. Colours of the page come from CSS classes, colours of the cells from ``cells.COLOURS``;
no ``style`` attribute is written, because the report's content security policy refuses them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from markupsafe import Markup, escape

from bloodcells.cells import CLASSES, COLOURS, SHORT_NAMES
from bloodcells.evaluation import NUM_BINS, Reliability, Selective
from bloodcells.report.curves import nice_step

_WIDTH: Final = 360
_LEFT: Final = 44
_RIGHT: Final = 350
_TOP: Final = 12
_LEAST_KEPT: Final = 20
"""Kept cells from which on their error is drawn."""

_FRAME: Final = Markup(
    '<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">'
    "<title>{title}</title>{content}</svg>"
)
_STRIP: Final = Markup(
    '<svg class="strip {kind}" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" '
    'aria-label="{title}"><title>{title}</title>{content}</svg>'
)
_RECT: Final = Markup(
    '<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}"/>'
)
_LINE: Final = Markup(
    '<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
)
_TEXT: Final = Markup('<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{text}</text>')


def full_name(name: str) -> str:
    """Return a class name as it is written in a sentence: ``immature granulocyte``."""
    return name.replace("_", " ")


def of(slide: Mapping[str, Any], figure: str, names: Sequence[str]) -> list[float]:
    """Return one figure (``percent``, ``estimate`` …) of a slide's row for each of the classes."""
    return [slide[f"{figure}_{name}"] for name in names]


def common_limit(slides: Iterable[Mapping[str, Any]], names: Sequence[str]) -> int:
    """Return the end of a scale that holds every interval of the slides: a multiple of 10 %."""
    highest = max((slide[f"high_{name}"] or 0 for slide in slides for name in names), default=0)
    return min(100, max(10, 10 * math.ceil(highest / 10)))


def short_uri(uri: str) -> str:
    """Return the last part of an image URI: enough to tell images apart on a picture's caption."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def most_probable(probabilities: Sequence[float], count: int) -> list[tuple[str, float]]:
    """Return the ``count`` most probable classes with their probabilities, highest first."""
    ranked = sorted(zip(CLASSES, probabilities, strict=True), key=lambda item: -item[1])
    return ranked[:count]


def heat(count: int, total: int) -> int:
    """Return how dark a cell of the confusion table is, 0–5: 0 empty, 1 rare, 5 above 80 %."""
    return math.ceil(5 * count / total) if total else 0


def stacked_bar(values: Sequence[float], names: Sequence[str], title: str, kind: str) -> Markup:
    """Draw shares as one bar from left to right, which they fill.

    Args:
        values: not negative, one a class.
        names: the classes, for their colours.
        title: what the bar shows, for people who cannot see it.
        kind: CSS class that sets its height.
    """
    total = sum(values) or 1.0
    content, x = Markup(), 0.0
    for name, value in zip(names, values, strict=True):
        width = 1000 * value / total
        if width > 0:
            content += Markup(
                '<rect class="cell" fill="{}" x="{:.1f}" y="0" width="{:.1f}" height="10">'
                "<title>{} {:.1f} %</title></rect>"
            ).format(COLOURS[name], x, width, full_name(name), 100 * value / total)
        x += width
    return _STRIP.format(kind=kind, title=title, content=content)


def interval_strip(
    raw: float, estimate: float, low: float, high: float, name: str, limit: float = 100.0
) -> Markup:
    """Draw an estimate, its interval and the raw figure on a track from 0 to ``limit``."""
    scale = 1000 / limit
    left, right = (min(v, limit) * scale for v in (low, high))
    title = (
        f"{full_name(name)}: estimate {estimate:.1f}, 95 % interval {low:.1f} to {high:.1f}, "
        f"raw {raw:.1f}"
    )
    # An interval narrower than a hair would not be seen: 4 of 1000 parts is about one pixel.
    band = Markup(
        '<rect class="cell band" fill="{0}" x="{1:.1f}" y="1.5" width="{2:.1f}" height="7"/>'
        '<line class="cell tick" stroke="{0}" x1="{3:.1f}" y1="0" x2="{3:.1f}" y2="10"/>'
        '<line class="raw" x1="{4:.1f}" y1="2.5" x2="{4:.1f}" y2="7.5"/>'
    ).format(
        COLOURS[name],
        left,
        max(right - left, 4.0),
        min(estimate, limit) * scale,
        min(raw, limit) * scale,
    )
    track = _LINE.format(kind="track", x1=0, y1=5, x2=1000, y2=5)
    return _STRIP.format(kind="interval", title=title, content=track + band)


def share_bar(share: float, name: str, title: str) -> Markup:
    """Draw one share of 0–1 as a bar in its class's colour on a track."""
    content = Markup(
        '<rect class="trough" x="0" y="0" width="1000" height="10"/>'
        '<rect class="cell" fill="{}" x="0" y="0" width="{:.1f}" height="10"/>'
    ).format(COLOURS[name], 1000 * share)
    return _STRIP.format(kind="share", title=title, content=content)


def confidence_histogram(counts: Iterable[int], flagged: Iterable[int]) -> Markup:
    """Draw how many images have which confidence, on a logarithmic scale of counts.

    Nearly all images of a good classifier lie in the last bin; on a linear scale nothing else
    would be seen, and the rest is what matters.

    Args:
        counts: images a bin, in bins of equal width over 0–1.
        flagged: of those, the ones to be reviewed; drawn over the others from the same base line.
    """
    counts, flagged = [int(n) for n in counts], [int(n) for n in flagged]
    bottom, decades = 178, max(1, math.ceil(math.log10(max(*counts, 1) + 1)))
    step = (_RIGHT - _LEFT) / len(counts)

    def height(count: int) -> float:
        # Half a decade below 1, so that a single image is seen.
        return (bottom - _TOP) * (math.log10(count) + 0.5) / (decades + 0.5) if count else 0.0

    content = Markup()
    for decade in range(decades + 1):
        y = bottom - height(10**decade)
        content += _LINE.format(kind="grid", x1=_LEFT, y1=y, x2=_RIGHT, y2=y)
        content += _TEXT.format(kind="end", x=_LEFT - 6, y=y + 4, text=f"{10**decade:,}")
    for kind, series in (("bar", counts), ("bar review", flagged)):
        for i, count in enumerate(series):
            if count:
                content += _RECT.format(
                    kind=kind,
                    x=_LEFT + i * step + 0.75,
                    y=bottom - height(count),
                    w=step - 1.5,
                    h=height(count),
                )
    content += _shares_below(bottom)
    content += _TEXT.format(
        kind="middle", x=(_LEFT + _RIGHT) / 2, y=bottom + 34, text="confidence of the class given"
    )
    total, review = sum(counts), sum(flagged)
    title = f"Images by confidence: {total:,} in all, {review:,} of them to be reviewed"
    return _FRAME.format(width=_WIDTH, height=bottom + 42, title=title, content=content)


def reliability_diagram(reliability: Reliability) -> Markup:
    """Draw the share of right images against confidence: on the diagonal, confidence is honest."""
    side = _RIGHT - _LEFT
    bottom = _TOP + side
    content = _shares_below(bottom)
    for tick in range(0, 101, 20):
        y = bottom - side * tick / 100
        content += _LINE.format(kind="grid", x1=_LEFT, y1=y, x2=_RIGHT, y2=y)
        content += _TEXT.format(kind="end", x=_LEFT - 6, y=y + 4, text=f"{tick} %")
    content += _LINE.format(kind="ideal", x1=_LEFT, y1=bottom, x2=_RIGHT, y2=_TOP)
    most = max(int(reliability.counts.max()), 1)
    for i in range(NUM_BINS):
        count = int(reliability.counts[i])
        if count == 0:
            continue
        x = _LEFT + side * float(reliability.confidence[i])
        value, low, high = reliability.accuracy[i]
        content += _LINE.format(
            kind="whisker", x1=x, y1=bottom - side * low, x2=x, y2=bottom - side * high
        )
        # Area in proportion to the images, never too small to see.
        content += Markup(
            '<circle class="bar" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>'
        ).format(
            x,
            bottom - side * value,
            max(3.0, 9.0 * math.sqrt(count / most)),
            f"{count:,} images, mean confidence {100 * reliability.confidence[i]:.1f} %, "
            f"{100 * value:.1f} % right",
        )
    content += _TEXT.format(
        kind="middle", x=(_LEFT + _RIGHT) / 2, y=bottom + 34, text="confidence of the class given"
    )
    title = (
        "Share of right images by confidence; expected calibration error "
        f"{100 * reliability.expected_error:.1f} %"
    )
    return _FRAME.format(width=_WIDTH, height=bottom + 42, title=title, content=content)


def risk_coverage(found: Selective) -> Markup:
    """Draw the error among the cells that are kept against how many are, and mark the run's limit.

    Where fewer than ``_LEAST_KEPT`` cells are kept their error is chance, and no line is drawn.
    """
    bottom, width = 178, _RIGHT - _LEFT
    least = min(_LEAST_KEPT / found.num_labelled, 0.5)
    shown = [
        (float(share), float(error))
        for share, error in zip(found.coverage, found.risk, strict=True)
        if share >= least
    ]
    marked = found.num_kept > 0
    bound = found.error_at_most if marked else 0.0
    highest = max(0.01, bound, *(error for _, error in shown))
    step = nice_step(highest / 4)
    top = step * math.ceil(highest / step - 1e-9)

    def place(share: float, error: float) -> tuple[float, float]:
        return _LEFT + width * share, bottom - (bottom - _TOP) * error / top

    content = Markup()
    digits = max(0, -math.floor(math.log10(100 * step) + 1e-9))
    for i in range(round(top / step) + 1):
        _, y = place(0, i * step)
        content += _LINE.format(kind="grid", x1=_LEFT, y1=y, x2=_RIGHT, y2=y)
        text = f"{100 * i * step:.{digits}f} %"
        content += _TEXT.format(kind="end", x=_LEFT - 6, y=y + 4, text=text)
    content += _shares_below(bottom)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*pair) for pair in shown))
    content += Markup('<polyline class="curve" points="{}"/>').format(points)
    title = "Error among the cells that are kept, by the share that is kept"
    if marked:
        error = found.num_wrong / found.num_kept
        x, y = place(found.num_kept / found.num_labelled, error)
        words = (
            f"{100 * found.num_kept / found.num_labelled:.1f} % kept, {100 * error:.2f} % of them "
            f"wrong, at most {100 * bound:.2f} %"
        )
        content += _LINE.format(kind="whisker", x1=x, y1=y, x2=x, y2=place(0, bound)[1])
        content += Markup(
            '<circle class="dot" cx="{0:.1f}" cy="{1:.1f}" r="3"><title>{2}</title></circle>'
            '<circle class="kept" cx="{0:.1f}" cy="{1:.1f}" r="6.5"/>'
        ).format(x, y, words)
        title += f"; of this run {words}"
    content += _TEXT.format(
        kind="middle", x=(_LEFT + _RIGHT) / 2, y=bottom + 34, text="share of the cells that is kept"
    )
    return _FRAME.format(width=_WIDTH, height=bottom + 42, title=title, content=content)


def legend(names: Sequence[str] = CLASSES) -> Markup:
    """Draw one swatch a class with its short and its full name."""
    return Markup().join(
        Markup(
            '<li><svg class="swatch" viewBox="0 0 10 10" aria-hidden="true">'
            '<rect class="cell" fill="{}" width="10" height="10" rx="2.5"/></svg>'
            "<b>{}</b> {}</li>"
        ).format(COLOURS[name], SHORT_NAMES[name], escape(full_name(name)))
        for name in names
    )


def _shares_below(bottom: float) -> Markup:
    """Draw the axis of shares from 0 to 100 % below a chart."""
    axis = _LINE.format(kind="axis", x1=_LEFT, y1=bottom, x2=_RIGHT, y2=bottom)
    for tick in range(0, 101, 20):
        x = _LEFT + (_RIGHT - _LEFT) * tick / 100
        kind = "end" if tick == 100 else "middle"
        axis += _TEXT.format(kind=kind, x=x, y=bottom + 17, text=f"{tick} %")
    return axis
