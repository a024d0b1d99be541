"""From what each picture says to a manifest: findings, who stands for whom, splits, what is used.

A pure function of tables. Knows nothing of stores, pixels or Ray.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bloodcells import quality
from bloodcells.duplicates import bits_apart, clusters
from bloodcells.errors import ConfigurationError
from bloodcells.grouping import IN_NO_SPLIT
from bloodcells.records import FINDINGS, MANIFEST_SCHEMA
from bloodcells.splits import DEFAULT_SHARES, Shares, Split, assign_splits, split_of

NEVER_KEPT: Final = ("undecodable", "unlabelled")
"""Findings in spite of which no image can be trained on."""

Notes = dict[int, dict[str, str]]
"""Findings of a row, each with its sentence."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What decides whether an image is used, and where.

    Attributes:
        keep: findings in spite of which images are used.
        shares: how large validation and test are.
        previous: the manifest that an earlier dataset has; its images keep their splits.
    """

    keep: tuple[str, ...] = ()
    shares: Shares = DEFAULT_SHARES
    previous: pa.Table | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in self.keep:
            if name not in FINDINGS or name in NEVER_KEPT:
                possible = ", ".join(one for one in FINDINGS if one not in NEVER_KEPT)
                raise ConfigurationError(
                    f"--keep {name}: no image can be used in spite of that; choose from {possible}"
                )


def compose(
    measured: pa.Table,
    leaders: npt.NDArray[np.int64],
    distance: npt.NDArray[np.floating],
    rules: Rules,
) -> pa.Table:
    """Judge all images of some stores together.

    Args:
        measured: rows in ``MEASURED_SCHEMA``.
        leaders: what :func:`leaders_of` says of them.
        distance: of each row from the store's reference, ``(N,)``; NaN where unknown.
        rules: what decides.

    Returns:
        The manifest, in ``MANIFEST_SCHEMA``, ordered by ``image_uri``.

    Raises:
        ConfigurationError: the store's own splits tear a group apart.
    """
    notes: Notes = defaultdict(dict)
    spread, sharpness = _floats(measured, "spread"), _floats(measured, "sharpness")
    is_blank = spread < quality.BLANK_BELOW
    faults = measured["fault"].to_pylist()
    labels = measured["label"].to_pylist()
    for row, fault in enumerate(faults):
        if fault is not None:
            notes[row]["undecodable"] = fault
        if labels[row] is None:
            notes[row]["unlabelled"] = "neither a folder nor a column says what it shows"
    _note_duplicates(notes, measured, leaders)
    _note(notes, "blank", quality.blank(spread))
    _note(notes, "blurred", quality.blurred(np.where(is_blank, np.nan, sharpness)))
    _note(notes, "alien", quality.alien(np.where(is_blank, np.nan, distance)))
    own = measured["group"].to_pylist()
    groups = [own[leader] for leader in leaders]
    is_clean = [not set(notes.get(row, ())) - set(rules.keep) for row in range(len(labels))]
    splits = _splits(measured, leaders, groups, is_clean, rules)
    uris = measured["image_uri"].to_pylist()
    columns: dict[str, Any] = {
        "group": groups,
        "split": splits,
        "used": [
            clean and split is not None for clean, split in zip(is_clean, splits, strict=True)
        ],
        "findings": [[f for f in FINDINGS if f in notes.get(row, ())] for row in range(len(uris))],
        "detail": [
            "; ".join(notes[row][f] for f in FINDINGS if f in notes[row]) if row in notes else ""
            for row in range(len(uris))
        ],
        "duplicate_of": [
            uris[leader] if leader != row else None for row, leader in enumerate(leaders)
        ],
    }
    arrays = [
        pa.array(columns[item.name], item.type) if item.name in columns else measured[item.name]
        for item in MANIFEST_SCHEMA
    ]
    manifest = pa.table(arrays, schema=MANIFEST_SCHEMA)
    return manifest.take(pc.sort_indices(manifest["image_uri"])).combine_chunks()


class _Earlier:
    """What an earlier dataset said of groups and of images by their content."""

    def __init__(self, manifest: pa.Table | None) -> None:
        self.by_group: dict[str, Split] = {}
        self.by_content: dict[str, Split] = {}
        if manifest is None:
            return
        wanted = manifest.select(["group", "content_hash", "split"])
        for row in wanted.filter(pc.is_valid(wanted["split"])).to_pylist():
            self.by_group[row["group"]] = row["split"]
            if row["content_hash"] is not None:
                self.by_content[row["content_hash"]] = row["split"]

    def kept(self, groups: Sequence[str], hashes: Sequence[str | None]) -> dict[str, Split]:
        """Return the split of each group that had one, or whose known images all had the same."""
        known: dict[str, set[Split]] = defaultdict(set)
        for group, content in zip(groups, hashes, strict=True):
            if group not in self.by_group and content in self.by_content:
                known[group].add(self.by_content[content])
        agreed = {group: next(iter(one)) for group, one in known.items() if len(one) == 1}
        return agreed | {g: self.by_group[g] for g in set(groups) & self.by_group.keys()}


def leaders_of(measured: pa.Table, rules: Rules) -> npt.NDArray[np.int64]:
    """Return for each row the row that stands for it: itself, where it is like no other before it.

    Args:
        measured: rows in ``MEASURED_SCHEMA``, N.
        rules: what decides.

    Returns:
        ``int64 (N,)``. Of a cluster that is an image with a label and a split, one that an earlier
        dataset knew, the first in the order of sources and of places within them: what is appended
        comes later.
    """
    earlier = _Earlier(rules.previous)
    is_blank = _floats(measured, "spread") < quality.BLANK_BELOW
    hashes = measured["content_hash"].to_pylist()
    faults, prints = measured["fault"].to_pylist(), measured["fingerprint"].to_pylist()
    labels, own = measured["label"].to_pylist(), measured["own_split"].to_pylist()
    number = clusters(
        [None if fault else one for one, fault in zip(hashes, faults, strict=True)],
        # The hash of a picture of nothing is noise.
        [None if blank else one for one, blank in zip(prints, is_blank, strict=True)],
    )
    places = zip(
        *(measured[name].to_pylist() for name in ("source_uri", "offset", "image_uri")), strict=True
    )
    rank = [
        (label is None or split == IN_NO_SPLIT, content not in earlier.by_content, place)
        for label, split, content, place in zip(labels, own, hashes, places, strict=True)
    ]
    best: dict[int, int] = {}
    for row, cluster in enumerate(number.tolist()):
        if cluster not in best or rank[row] < rank[best[cluster]]:
            best[cluster] = row
    return np.array([best[cluster] for cluster in number.tolist()], np.int64)


def _note_duplicates(notes: Notes, measured: pa.Table, leaders: npt.NDArray[np.int64]) -> None:
    hashes, labels = measured["content_hash"].to_pylist(), measured["label"].to_pylist()
    prints, uris = measured["fingerprint"].to_pylist(), measured["image_uri"].to_pylist()
    members: dict[int, list[int]] = defaultdict(list)
    for row, leader in enumerate(leaders.tolist()):
        if row != leader:
            members[leader].append(row)
    for leader, others in members.items():
        said = Counter(labels[row] for row in (leader, *others) if labels[row] is not None)
        if len(said) > 1:
            spoken = " and ".join(sorted(said))
            for row in (leader, *others):
                notes[row]["conflicting_label"] = f"the same picture is labelled {spoken}"
        first_of: dict[str, int] = {hashes[leader]: leader}
        for row in others:
            same = first_of.setdefault(hashes[row], row)
            if same != row:
                notes[row]["exact_duplicate"] = f"the same bytes as {uris[same]}"
            if hashes[row] != hashes[leader]:
                apart = bits_apart(prints[row], prints[leader])
                notes[row]["near_duplicate"] = (
                    f"looks like {uris[leader]}: {apart} of 256 bits of their perceptual hashes "
                    "differ"
                )


def _splits(
    measured: pa.Table,
    leaders: npt.NDArray[np.int64],
    groups: Sequence[str],
    is_clean: Sequence[bool],
    rules: Rules,
) -> list[str | None]:
    """Return each row's split: what the store says of its leader, else its group's."""
    labels, own = measured["label"].to_pylist(), measured["own_split"].to_pylist()
    hashes = measured["content_hash"].to_pylist()
    drawn = [row for row, label in enumerate(labels) if label and own[leaders[row]] is None]
    usable = [row for row in drawn if is_clean[row]]
    drawn_groups = [groups[row] for row in drawn]
    kept = _Earlier(rules.previous).kept(drawn_groups, [hashes[row] for row in drawn])
    # Only what is used can show that a class lacks a split.
    by_group: dict[str, Split] = assign_splits(
        [groups[row] for row in usable],
        [labels[row] for row in usable],
        shares=rules.shares,
        kept=kept,
    )
    for group in drawn_groups:
        if group not in by_group:
            by_group[group] = kept.get(group) or split_of(group, rules.shares)
    found: list[str | None] = []
    for row, label in enumerate(labels):
        said = own[leaders[row]]
        if label is None:
            found.append(None)
        elif said is None:
            found.append(by_group[groups[row]])
        else:
            found.append(said or None)
    _refuse_torn_groups(groups, found, is_clean)
    return found


def _refuse_torn_groups(
    groups: Sequence[str], splits: Sequence[str | None], is_clean: Sequence[bool]
) -> None:
    seen: dict[str, str] = {}
    for group, split, clean in zip(groups, splits, is_clean, strict=True):
        if split is not None and clean and seen.setdefault(group, split) != split:
            raise ConfigurationError(
                f"--group-by: the store's own splits put group {group} into {seen[group]} and into "
                f"{split}; group by something else, e.g. --group-by image"
            )


def _note(notes: Notes, finding: str, sentences: Mapping[int, str]) -> None:
    for row, sentence in sentences.items():
        notes[row][finding] = sentence


def _floats(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    # A null becomes NaN.
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), np.float64)


def reference_rows(measured: pa.Table, leaders: npt.NDArray[np.int64], most: int) -> list[int]:
    """Choose a sample of the store to compare with: the pictures of lowest content hash.

    Of pictures that are the same only one is in it, so that copies cannot vouch for each other.
    """
    is_blank = _floats(measured, "spread") < quality.BLANK_BELOW
    hashes, prints = measured["content_hash"].to_pylist(), measured["fingerprint"].to_pylist()
    rows = [
        row
        for row in range(len(hashes))
        if leaders[row] == row and prints[row] is not None and not is_blank[row]
    ]
    return sorted(sorted(rows, key=lambda row: str(hashes[row]))[:most])
