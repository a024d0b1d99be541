"""Labelled stores to pixels in the Ray object store, decoded on the road that scoring takes.

One task plans a source, one reads and decodes a shard. The driver sees labels and content hashes;
pixels stay where they were decoded and are mapped, not copied, by the workers of their node. The
pixels of all training images must fit in the cluster's object store (66 kB an image at 148 px).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import ray

from bloodcells.cells import CLASSES
from bloodcells.errors import ImageError, StoreError
from bloodcells.imaging import Preprocess, content_hash, decode
from bloodcells.records import Fault, Member, Shard
from bloodcells.splits import Split, draw_validation
from bloodcells.storage import name_of
from bloodcells.stores import Source, open_store, plan_source, read_shard

MARGIN: Final = 1.55
"""Side of the decoded field in crops: what a turned and zoomed crop may uncover around itself."""

_SHARD_SIZE: Final = 500

Splits = Mapping[tuple[str, str], Split]


@dataclass(frozen=True, kw_only=True)
class LabelledPixels:
    """Decoded training data.

    Attributes:
        preprocess: how the model will see images.
        blocks: object references, each to ``uint8 (n, M, M, 3)``, M at least ``preprocess.size``:
            the model's crop with a margin, at the model's scale, of all images.
        validation_blocks: references, each to ``uint8 (n, S, S, 3)``: validation images as scoring
            will see them, in the order of the rows where ``is_validation``.
        labels: ``int64 (N,)``, index into ``CLASSES``, of all rows of all blocks.
        is_validation: ``bool (N,)``.
        content_hashes: sha256 of each image's bytes, N hex strings.
        left_out: how many images were not used, by reason.
    """

    preprocess: Preprocess
    blocks: tuple[ray.ObjectRef[npt.NDArray[np.uint8]], ...]
    validation_blocks: tuple[ray.ObjectRef[npt.NDArray[np.uint8]], ...]
    labels: npt.NDArray[np.int64]
    is_validation: npt.NDArray[np.bool_]
    content_hashes: tuple[str, ...]
    left_out: Mapping[str, int]

    def counts(self, *, validation: bool) -> npt.NDArray[np.int64]:
        """Return the number of images a class, ``int64 (8,)``, of one split."""
        own = self.labels[self.is_validation == validation]
        return np.bincount(own, minlength=len(CLASSES)).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class _Block:
    """What the driver knows of one decoded shard: its readable members, in order."""

    members: list[Member]
    content_hashes: list[str]
    num_unreadable: int


def with_margin(preprocess: Preprocess) -> Preprocess:
    """Return the field that is decoded for training: more of the image, at the same scale."""
    crop = min(1.0, preprocess.crop * MARGIN)
    return Preprocess(size=round(preprocess.size * crop / preprocess.crop), crop=crop)


def load_labelled(
    stores: Sequence[str], preprocess: Preprocess, splits: Splits | None = None
) -> LabelledPixels:
    """Read, decode and split all labelled images of some stores; Ray must be running.

    Args:
        stores: URIs; labels come from class-named folders, ``label`` columns or ``labels`` arrays.
        preprocess: how the model will see images.
        splits: the split of each (archive's file name, member); images that it lacks are not read.
            Without it a tenth of each class validates, chosen by content.

    Raises:
        StoreError: a store has no labelled image, or a class has too few to train and validate.
    """
    sources = open_store(stores).sources()
    plan: Any = ray.remote(_plan_labelled)
    planned = ray.get([plan.remote(source, splits) for source in sources])
    shards = [shard for part, _ in planned for shard in part]
    left_out = sum((Counter(counts) for _, counts in planned), Counter[str]())
    if not shards:
        found = "; ".join(f"{count:,} {why}" for why, count in left_out.items()) or "no image"
        raise StoreError(
            f"--store {' '.join(stores)}: nothing to train on ({found}); put images into folders "
            f"named after their class ({', '.join(CLASSES)})"
        )
    read: Any = ray.remote(_read_labelled).options(num_returns=2)
    answers = [read.remote(shard, with_margin(preprocess)) for shard in shards]
    blocks: list[_Block] = ray.get([block for block, _ in answers])
    left_out["unreadable"] += sum(block.num_unreadable for block in blocks)
    members = [member for block in blocks for member in block.members]
    labels = np.array([CLASSES.index(m.label) for m in members if m.label], np.int64)
    hashes = tuple(each for block in blocks for each in block.content_hashes)
    if splits is None:
        is_validation = draw_validation(hashes, labels)
    else:
        own = [
            _split_of(shard, member, splits)
            for shard, block in zip(shards, blocks, strict=True)
            for member in block.members
        ]
        is_validation = np.array([split == "val" for split in own], bool)
    _require_every_class(labels, is_validation, stores)
    return LabelledPixels(
        preprocess=preprocess,
        blocks=tuple(pixels for _, pixels in answers),
        validation_blocks=tuple(
            read.remote(shard, preprocess)[1]
            for shard in _validation_shards(shards, blocks, is_validation)
        ),
        labels=labels,
        is_validation=is_validation,
        content_hashes=hashes,
        left_out={why: count for why, count in left_out.items() if count},
    )


def _validation_shards(
    shards: Sequence[Shard], blocks: Sequence[_Block], is_validation: npt.NDArray[np.bool_]
) -> Iterator[Shard]:
    """Yield the validation part of each shard; they are read again, as scoring reads them."""
    start = 0
    for shard, block in zip(shards, blocks, strict=True):
        chosen = is_validation[start : start + len(block.members)]
        members = tuple(m for m, own in zip(block.members, chosen, strict=True) if own)
        start += len(block.members)
        if members:
            yield Shard.make(shard.source_uri, shard.kind, members)


def _require_every_class(
    labels: npt.NDArray[np.int64], is_validation: npt.NDArray[np.bool_], stores: Sequence[str]
) -> None:
    for validation, purpose in ((False, "training"), (True, "validation")):
        present = set(labels[is_validation == validation])
        absent = [name for i, name in enumerate(CLASSES) if i not in present]
        if absent:
            raise StoreError(
                f"--store {' '.join(stores)}: no {purpose} image of {', '.join(absent)}; "
                "every class needs at least two different images"
            )


def _split_of(shard: Shard, member: Member, splits: Splits) -> Split | None:
    return splits.get((name_of(shard.source_uri), member.name))


def _plan_labelled(source: Source, splits: Splits | None) -> tuple[list[Shard], dict[str, int]]:
    """List what of a source can be trained on, and count what cannot."""
    shards: list[Shard] = []
    left_out: Counter[str] = Counter()
    for item in plan_source(source, shard_size=_SHARD_SIZE):
        if not isinstance(item, Shard):
            continue
        labelled = [m for m in item.members if m.label is not None]
        left_out["without label"] += len(item.members) - len(labelled)
        kept = [m for m in labelled if splits is None or _split_of(item, m, splits)]
        left_out["in neither split"] += len(labelled) - len(kept)
        if kept:
            shards.append(Shard.make(item.source_uri, item.kind, tuple(kept)))
    return shards, dict(left_out)


def _read_labelled(shard: Shard, field: Preprocess) -> tuple[_Block, npt.NDArray[np.uint8]]:
    """Read and decode one shard; returns facts and ``uint8 (n, S, S, 3)``, S of ``field``."""
    pixels: list[npt.NDArray[np.uint8]] = []
    members: list[Member] = []
    hashes: list[str] = []
    num_unreadable = 0
    for record in read_shard(shard):
        if isinstance(record.data, Fault):
            num_unreadable += 1
            continue
        try:
            pixels.append(decode(record.data, field).pixels)
        except ImageError:
            num_unreadable += 1
            continue
        members.append(record.member)
        hashes.append(content_hash(record.data))
    block = _Block(members=members, content_hashes=hashes, num_unreadable=num_unreadable)
    return block, np.array(pixels, np.uint8).reshape(-1, field.size, field.size, 3)
