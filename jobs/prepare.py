"""Make a dataset of labelled stores: ``python -m jobs.prepare --store … --out DATASET``.

A dataset is a manifest: which images train, validate and test, and what speaks against the others.
No image is copied, changed or deleted. The same command writes the same manifest; images that are
added to a store move none of the old ones. Exit codes: 0 written, 1 refused or failed, 2 wrong
usage, 3 a shard ended its process again and again, 130 interrupted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bloodcells import features, quality, storage
from bloodcells.cells import CLASSES
from bloodcells.datasets import (
    Dataset,
    find_dataset,
    read_manifest,
    require_trainable,
    write_dataset,
)
from bloodcells.duplicates import NEAR_BITS
from bloodcells.grouping import AUTO, Grouping
from bloodcells.manifest import Rules
from bloodcells.pipeline.cluster import start_ray
from bloodcells.pipeline.preparing import build_manifest
from bloodcells.report.dataset import draw_report
from bloodcells.splits import read_split_table
from bloodcells.stores import open_store
from jobs.flags import flag, parse, run_job
from jobs.progress import say


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Find what is wrong with labelled images and split them; write a manifest, copy nothing."""

    store: tuple[str, ...] = flag("labelled store, URI or glob, local or s3://; repeatable")
    out: str = flag("folder of the dataset, local or s3://")
    splits: str | None = flag(
        "CSV with columns shard, member, split (train, val, test; others are not used); without it "
        "the store's own column split counts, else a hash of each group",
        default=None,
    )
    group_by: str = flag(
        "what must not be in two splits: image, slide, a column of the tables, or auto: the slide "
        "where the store says it",
        default=AUTO,
    )
    slide_pattern: str | None = flag(
        "regular expression over the image's URI; its first group is the slide", default=None
    )
    keep: tuple[str, ...] = flag(
        "use images in spite of this finding (e.g. blurred); repeatable",
        default=(),
        metavar="FINDING",
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is started."""
        Grouping(group_by=self.group_by)
        Rules(keep=self.keep)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    config = parse(PrepareConfig, "prepare", argv)
    return run_job(lambda: prepare(config))


def prepare(config: PrepareConfig) -> Dataset:
    """Make a dataset and write it.

    Raises:
        BloodcellsError: a store, the split table or a setting cannot be used; nothing was written.
    """
    begun = time.monotonic()
    out = storage.normalise(config.out)
    store = open_store(config.store, slide_pattern=config.slide_pattern)
    store.require_apart_from(out)
    earlier = find_dataset(out)
    rules = Rules(keep=config.keep, previous=read_manifest(out) if earlier else None)
    grouping = Grouping(
        group_by=config.group_by,
        slide_pattern=config.slide_pattern,
        splits=read_split_table(config.splits) if config.splits else None,
    )
    start_ray()
    say(f"reading {len(store.sources()):,} sources")
    prepared = build_manifest(config.store, grouping=grouping, rules=rules)
    for problem in prepared.problems:
        say(f"warning: {problem.uri}: {problem.detail}")
    for warning in require_trainable(prepared.manifest, config.store, prepared.num_ignored):
        say(f"warning: {warning}")
    dataset = write_dataset(
        out,
        prepared.manifest,
        stores=store.uris,
        settings=settings_of(config, rules),
        num_ignored=prepared.num_ignored,
        problems=[{"uri": one.uri, "detail": one.detail} for one in prepared.problems],
        draw=draw_report,
    )
    print(summary(dataset.counts))
    print(f"dataset {dataset.digest[:16]} is in {out} ({time.monotonic() - begun:.0f} s)")
    return dataset


def settings_of(config: PrepareConfig, rules: Rules) -> dict[str, Any]:
    """Return what the manifest depends on besides the stores."""
    return {
        "splits": storage.normalise(config.splits) if config.splits else None,
        "group_by": config.group_by,
        "slide_pattern": config.slide_pattern,
        "keep": sorted(config.keep),
        "shares": rules.shares.to_dict(),
        "limits": {**quality.limits(), "near_bits": NEAR_BITS},
        "features": features.BACKBONE,
    }


def summary(counts: Mapping[str, Any]) -> str:
    """Return a dataset's counts as text: how many images are where, and what was found."""
    by_split = ", ".join(
        f"{sum(by_class.values()):,} {split}" for split, by_class in counts["splits"].items()
    )
    found = ", ".join(f"{n:,} {name}" for name, n in counts["findings"].items() if n)
    width = max(map(len, CLASSES))
    rows = [
        f"  {name:{width}}"
        + "".join(f"{by_class[name]:>8,}" for by_class in counts["splits"].values())
        for name in CLASSES
    ]
    return "\n".join(
        [
            f"{counts['images']:,} images, {counts['used']:,} used: {by_split}",
            f"findings: {found or 'none'}",
            *rows,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
