"""The report of a site profile: a lab's cells before and after it, beside the training lab's.

Knows what a job hands it, pictures and figures, and nothing of how a profile is found.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from bloodcells import storage
from bloodcells.imaging import Preprocess
from bloodcells.report.page import render_page
from bloodcells.report.thumbnails import data_uri
from bloodcells.sites import MIN_IMAGES, SITE_NAME, HomeReference, SiteProfile
from bloodcells.sites.rulers import RULERS, Measures

REPORT_NAME: Final = "report.html"
CELLS_SHOWN: Final = 12
"""Cells of each lab that are shown."""

_TITLE: Final = b"<title>Blood cells: site profile "
"""By which a report is known that was written when its profile was not, as the job was cut off."""

_SWATCH: Final = Markup(
    '<svg class="strip thick" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" '
    'aria-label="{title}"><title>{title}</title>'
    '<rect fill="{colour}" width="1000" height="10"/></svg>'
)


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenCell:
    """A picture as the bundle sees it, and what it says of it.

    Attributes:
        pixels: ``uint8 (S, S, 3)``, RGB, 0–255.
        predicted_class: a class name.
        confidence: calibrated, 0–1.
        out_of_domain: whether the bundle takes it for none of the eight cell types.
    """

    pixels: npt.NDArray[np.uint8]
    predicted_class: str
    confidence: float
    out_of_domain: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Beside:
    """Pictures of the training lab, from a store that somebody named as such.

    Attributes:
        store: where they are from.
        cells: some of them, as the bundle sees home.
        comparison: how far a sample of that store lies from what the bundle knows as its home.
    """

    store: str
    cells: Sequence[SeenCell]
    comparison: SiteProfile


@dataclass(frozen=True, kw_only=True, eq=False)
class SiteFacts:
    """All that the report shows.

    Attributes:
        stores: of the lab.
        bundle_uri: the model.
        model_name: its architecture.
        preprocess: how it sees its own lab's pictures.
        profile: what was found.
        home: what the bundle knows of its own lab; ``None`` for nothing.
        here: median of each ruler over the lab's pictures, ``float64 (7,)``.
        cells: the lab's, as pairs: seen without the profile, and with it.
        beside: the training lab's; ``None`` where no store of it was named.
    """

    stores: Sequence[str]
    bundle_uri: str
    model_name: str
    preprocess: Preprocess
    profile: SiteProfile
    home: HomeReference | None
    here: Measures
    cells: Sequence[tuple[SeenCell, SeenCell]]
    beside: Beside | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RulerRow:
    """A ruler as a person reads it: here, at home, and how far apart in spreads of home pictures.

    ``home`` and ``apart`` are ``None`` where the bundle does not know its home.
    """

    words: str
    digits: int
    here: float
    home: float | None
    apart: float | None


def write_site(folder_uri: str, facts: SiteFacts) -> str:
    """Write a site profile and its report into a folder, ``site.json`` last; return the folder.

    An older ``site.json`` goes first, or it would stand beside a report that is not its own.

    Raises:
        StorageError: it cannot be written there.
    """
    folder_uri = storage.normalise(folder_uri)
    profile_uri = storage.join(folder_uri, SITE_NAME)
    if storage.exists(profile_uri):
        storage.delete(profile_uri)
    storage.put(storage.join(folder_uri, REPORT_NAME), render(facts, folder_uri).encode())
    facts.profile.save(folder_uri)
    return folder_uri


def is_site_report(folder_uri: str) -> bool:
    """Say whether a folder's ``report.html`` is one that :func:`write_site` wrote."""
    report_uri = storage.join(folder_uri, REPORT_NAME)
    return storage.exists(report_uri) and _TITLE in storage.read(report_uri)


def render(facts: SiteFacts, folder_uri: str) -> str:
    """Return the report as HTML; the same facts give the same report.

    Args:
        facts: what to show.
        folder_uri: where the profile is written, for the command that uses it.
    """
    return render_page(
        "site.html",
        facts=facts,
        profile=facts.profile,
        seen=facts.profile.seen_by(facts.preprocess),
        rulers=ruler_rows(facts),
        min_images=MIN_IMAGES,
        shown=_shown,
        swatches_here=swatches(facts.here, "here"),
        swatches_home=swatches(facts.home.centre, "at the training lab") if facts.home else None,
        command=_command(facts, folder_uri),
    )


def ruler_rows(facts: SiteFacts) -> list[RulerRow]:
    """Return the rulers in units that a person can look up in a picture: grey levels, densities."""
    rows = []
    for place, name in enumerate(RULERS):
        kind, _, channel = name.partition("_")
        words, digits = {
            "background": (f"background, {channel}, grey levels", 0),
            "surround": (f"what lies around the cell, {channel}, optical density", 3),
            "detail": ("step between neighbouring pixels, grey levels", 2),
        }[kind]
        home = None if facts.home is None else float(facts.home.centre[place])
        rows.append(
            RulerRow(
                words=words,
                digits=digits,
                here=_in_units(kind, float(facts.here[place])),
                home=None if home is None else _in_units(kind, home),
                apart=None
                if facts.home is None or home is None
                else (float(facts.here[place]) - home) / float(facts.home.spread[place]),
            )
        )
    return rows


def swatches(measures: Measures, where: str) -> list[tuple[str, Markup]]:
    """Draw the colours that rulers speak of, each with its name.

    Args:
        measures: of the rulers, ``float64 (7,)``.
        where: whose they are, for people who cannot see them.
    """
    background = np.exp(measures[:3])
    return [
        (name, _SWATCH.format(title=f"{name} {where}: {colour}", colour=colour))
        for name, colour in (
            ("background", _rgb(background)),
            ("around the cell", _rgb(background * np.exp(-measures[3:6]))),
        )
    ]


def _in_units(kind: str, value: float) -> float:
    """Undo the logarithm of a ruler, where it has one that nobody wants to read."""
    if kind == "background":
        return float(np.exp(value))
    return float(np.expm1(value)) if kind == "detail" else value


def _rgb(levels: npt.NDArray[np.float64]) -> str:
    red, green, blue = (round(min(max(float(level), 0.0), 255.0)) for level in levels)
    return f"rgb({red}, {green}, {blue})"


def _shown(cell: SeenCell) -> str:
    return data_uri(cell.pixels)


def _command(facts: SiteFacts, folder_uri: str) -> str:
    """Return the command that scores the lab's pictures with the profile."""
    words = [word for store in facts.stores for word in ("--store", store)]
    words += ["--bundle", facts.bundle_uri, "--site", folder_uri, "--out", "RUN"]
    command = f"python -m jobs.score {shlex.join(words)}"
    # Whole, or it would not run: the filter ``text`` would shorten it.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in command)
