"""A bundle for another lab: ``python -m jobs.adapt --store LABELLED --out BUNDLE``.

Ten to twenty labelled cells a class are enough; they lie in a store as for ``jobs.prepare``, or are
what people said of a run's cells on its page. It measures itself by cross-validation, slides kept
whole, and writes nothing that is worse than the bundle it was given. Exit codes: 0 written, 1
refused or failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bloodcells import storage
from bloodcells.bundle import MANIFEST_NAME, ModelBundle, shipped_bundle_uri
from bloodcells.errors import BundleError, ConfigurationError
from bloodcells.evaluation import error_free
from bloodcells.model_card import not_kept_apart
from bloodcells.stores import open_store
from bloodcells.training.adapting import Adaptation, adapt, table_of
from bloodcells.training.adapting_cells import (
    MOST_A_CLASS,
    LabelledCells,
    cells_of_run,
    cells_of_stores,
)
from bloodcells.training.adapting_fit import Fitting
from bloodcells.training.adapting_folds import require_enough
from bloodcells.training.calibration import REVIEW_ERROR
from jobs.flags import flag, parse, printable, run_job
from jobs.progress import say


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Make a bundle for another lab from ten to twenty labelled cells a class, in minutes."""

    out: str = flag("folder of the new bundle, local or s3://")
    store: tuple[str, ...] = flag(
        "labelled store, URI or glob, local or s3://; repeatable", default=()
    )
    run: str | None = flag(
        "a run whose cells people reviewed: what they said is taken instead of a store",
        default=None,
    )
    bundle: str | None = flag("bundle to begin with; by default the shipped one", default=None)
    slide_pattern: str | None = flag(
        "regular expression over the image's URI; its first group is the slide", default=None
    )
    steps: int = flag(
        "steps of the whole network after its dense layer was fitted; 0 for none",
        default=Fitting.steps,
    )
    seed: int = flag("of everything that is drawn", default=0)

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is read."""
        if bool(self.store) == bool(self.run):
            raise ConfigurationError("give either --store or --run: one of the two holds the cells")
        if self.run and self.slide_pattern is not None:
            raise ConfigurationError(
                "--slide-pattern: a run knows the slides of its cells; leave the flag out"
            )
        if self.steps < 0:
            raise ConfigurationError(f"--steps {self.steps}: give 0 or more")
        if self.seed < 0:
            raise ConfigurationError(f"--seed {self.seed}: give 0 or more")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    config = parse(AdaptConfig, "adapt", argv)
    return run_job(lambda: run_adaptation(config), goes_on=False)


def run_adaptation(config: AdaptConfig) -> Adaptation:
    """Adapt a bundle, print what it is worth, and write it.

    Raises:
        BloodcellsError: the cells or the bundle cannot be used, or the new bundle is worse than
            the given one; nothing was written.
    """
    begun = time.monotonic()
    out = storage.normalise(config.out)
    _require_free(out)
    bundle = ModelBundle.load(config.bundle or shipped_bundle_uri())
    cells = _cells(config, out)
    for reason, number in cells.left_out.items():
        say(f"left out: {number:,} {reason}")
    require_enough(cells.labels)
    slides = len(set(cells.groups))
    say(f"{len(cells.labels):,} labelled cells of {slides:,} slide{'' if slides == 1 else 's'}")
    adapted = adapt(
        bundle,
        cells.images,
        cells.labels,
        cells.groups,
        fitting=Fitting(steps=config.steps, seed=config.seed),
        about={"stores": list(cells.sources), "left_out": cells.left_out},
        say=say,
    )
    print(printable_table(table_of(adapted)))
    for warning in warnings_of(adapted, from_reviews=config.run is not None):
        say(f"warning: {warning}")
    adapted.require_no_worse()
    adapted.bundle.save(out)
    took = time.monotonic() - begun
    print(printable(f"bundle {adapted.bundle.digest[:23]} is in {out} ({took:.0f} s)"))
    return adapted


def warnings_of(adapted: Adaptation, *, from_reviews: bool) -> list[str]:
    """Return what to keep in mind about the figures, a sentence each."""
    found = [adapted.after.intervals.warning] if adapted.after.intervals.warning else []
    if adapted.not_apart:
        found.append(not_kept_apart(adapted.not_apart))
    if adapted.bundle.calibration.review_below == 1:
        found.append(
            f"every cell will be marked for review: to spare any takes {error_free(REVIEW_ERROR)} "
            f"labelled cells without an error, more with errors, and at most {MOST_A_CLASS} of a "
            "class are used here; jobs.train takes more"
        )
    if from_reviews:
        found.append(
            "people look at the cells that the model is least sure of: all cells of the lab fare "
            "better than these, before and after"
        )
    return found


def printable_table(text: str) -> str:
    """Return a table whose lines may be printed."""
    return "\n".join(printable(line) for line in text.splitlines())


def _cells(config: AdaptConfig, out: str) -> LabelledCells:
    if config.run:
        return cells_of_run(config.run)
    open_store(config.store, slide_pattern=config.slide_pattern).require_apart_from(out)
    return cells_of_stores(config.store, slide_pattern=config.slide_pattern)


def _require_free(out: str) -> None:
    """Refuse a folder that holds something: an old bundle's weights must not mix with new ones.

    Raises:
        BundleError: there is a bundle, a run or a dataset.
    """
    for name in (MANIFEST_NAME, "run.json", "dataset.json"):
        if storage.exists(storage.join(out, name)):
            raise BundleError(f"--out {out} holds a {name} already; choose another folder")


if __name__ == "__main__":
    sys.exit(main())
