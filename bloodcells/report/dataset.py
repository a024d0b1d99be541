"""The report of a prepared dataset: classes, splits, and every finding with pictures of it.

One HTML file that needs nothing else, in the manner of a run's report. Pictures are read back from
their stores; those that cannot be are left out, and their place says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from bloodcells.cells import CLASSES
from bloodcells.datasets import Dataset
from bloodcells.errors import ImageError, StorageError, StoreError, UnavailableError
from bloodcells.records import FINDINGS, Fault, Member, Shard
from bloodcells.report.page import render_page
from bloodcells.report.thumbnails import data_uri
from bloodcells.splits import LEAST_GROUPS, SPLITS
from bloodcells.stores import read_shard

EXAMPLES_SHOWN: Final = 24

EXPLANATIONS: Final[Mapping[str, str]] = {
    "undecodable": "The file cannot be read as a picture. It is never used.",
    "unlabelled": "Nothing says which cell it shows. It is never used.",
    "conflicting_label": "The same picture, byte for byte or nearly, is labelled as two cell "
    "types. One of them is wrong, and nothing here can say which: all copies are set aside.",
    "exact_duplicate": "The very same bytes as another image, which stands for it.",
    "near_duplicate": "Another image shows the same picture, saved anew, resized or brightened. "
    "The first of them stands for all; they are never in two splits.",
    "blank": "The picture is of one brightness: there is nothing in it.",
    "blurred": "Far softer than the pictures of this store are.",
    "alien": "Unlike the other pictures of this store, to a network that knows everyday "
    "photographs: no blood cell, or a rare one that deserves a look.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An image in the report; ``picture`` is a ``data:`` URI, ``None`` where it cannot be read."""

    image_uri: str
    label: str | None
    split: str | None
    picture: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An image with a finding, and the one that stands for it, if another does."""

    image: Shown
    detail: str
    beside: Shown | None


def draw_report(dataset: Dataset, manifest: pa.Table) -> str:
    """Return a dataset's report as HTML."""
    rows = {name: _examples(manifest, name) for name in FINDINGS}
    listed = [row for found in rows.values() for row in found]
    leaders = _rows_of(manifest, {row["duplicate_of"] for row in listed if row["duplicate_of"]})
    pictures = _pictures([*listed, *leaders.values()])

    def shown(row: Mapping[str, Any]) -> Shown:
        return Shown(
            image_uri=row["image_uri"],
            label=row["label"],
            split=row["split"] if row["used"] else None,
            picture=pictures.get(row["image_uri"]),
        )

    examples = {
        name: [
            Example(
                image=shown(row),
                detail=row["detail"],
                beside=shown(leaders[row["duplicate_of"]]) if row["duplicate_of"] else None,
            )
            for row in found
        ]
        for name, found in rows.items()
    }
    splits = dataset.counts["splits"]
    totals = {name: sum(splits[split][name] for split in SPLITS) for name in CLASSES}
    return render_page(
        "dataset.html",
        dataset=dataset,
        counts=dataset.counts,
        settings=dataset.settings,
        examples=examples,
        explanations=EXPLANATIONS,
        splits=splits,
        totals=totals,
        most=max(1, *totals.values()),
        lacking={
            split: [name for name in CLASSES if totals[name] and not splits[split][name]]
            for split in SPLITS
        },
        least_groups=LEAST_GROUPS,
        examples_shown=EXAMPLES_SHOWN,
    )


def _examples(manifest: pa.Table, finding: str) -> list[dict[str, Any]]:
    """Return some rows with a finding, spread over the whole manifest.

    Of the same picture under two labels, the image that stands for the others is shown beside them.
    """
    names = manifest["findings"].to_pylist()
    leads = manifest["duplicate_of"].is_null().to_pylist()
    has = [
        row
        for row in range(len(names))
        if finding in names[row] and not (finding == "conflicting_label" and leads[row])
    ]
    step = max(1, len(has) / EXAMPLES_SHOWN)
    chosen = [has[int(i * step)] for i in range(min(len(has), EXAMPLES_SHOWN))]
    found: list[dict[str, Any]] = manifest.take(pa.array(chosen, pa.int64())).to_pylist()
    return found


def _rows_of(manifest: pa.Table, uris: Iterable[str]) -> dict[str, dict[str, Any]]:
    wanted = manifest.filter(pc.is_in(manifest["image_uri"], pa.array(sorted(uris), pa.string())))
    return {row["image_uri"]: row for row in wanted.to_pylist()}


def _pictures(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Read images back from their stores, each once; returns ``data:`` URIs by image URI."""
    by_source: dict[tuple[str, Any], dict[str, Member]] = defaultdict(dict)
    for row in rows:
        by_source[row["source_uri"], row["kind"]][row["image_uri"]] = Member(
            **{name: row[name] for name in Member.__dataclass_fields__}
        )
    shown: dict[str, str] = {}
    for (source_uri, kind), members in by_source.items():
        ordered = tuple(sorted(members.values(), key=lambda m: (m.offset, m.image_uri)))
        try:
            for record in read_shard(Shard.make(source_uri, kind, ordered)):
                if isinstance(record.data, Fault):
                    continue
                try:
                    shown[record.member.image_uri] = data_uri(record.data)
                except ImageError:
                    continue
        except UnavailableError:
            # Minutes of retries are over, and each source to come would take as long.
            return shown
        except (StorageError, StoreError):
            continue
    return shown
