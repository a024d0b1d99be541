"""Every cell judged once, by a model that did not see it; and what that says of review."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.cells import CLASSES
from bloodcells.errors import ConfigurationError
from bloodcells.training.folds import HeldOut, folds_of, out_of_fold, with_review
from tests.manifests import manifest_of, write_cells


@pytest.fixture(scope="module")
def shipped() -> ModelBundle:
    return ModelBundle.load(shipped_bundle_uri())


def held_out(num_images: int, num_wrong: int) -> HeldOut:
    """Cells in order of confidence, the wrong ones behind two thirds of them."""
    right = np.ones(num_images, bool)
    right[num_images * 2 // 3 :][:num_wrong] = False
    return HeldOut(confidence=np.linspace(1, 0.2, num_images), right=right, num_folds=3)


def test_folds_divide_what_trains_and_keep_groups(tmp_path: Path) -> None:
    def split(name: str) -> str:
        return "test" if name.endswith("5.jpg") else "train"

    manifest = manifest_of(write_cells(tmp_path / "cells", 12), split)
    groups = [str(i // 2) for i in range(len(manifest))]
    place = manifest.schema.get_field_index("group")
    manifest = manifest.set_column(place, "group", pa.array(groups))
    folds = folds_of(manifest, 3)
    validates = np.zeros(len(manifest), int)
    for fold in folds:
        splits = np.array(fold["split"].to_pylist())
        assert (splits == "test").tolist() == (
            np.array(manifest["split"].to_pylist()) == "test"
        ).tolist()
        validates += splits == "val"
        of_group: dict[str, set[str]] = {}
        for group, own in zip(groups, splits, strict=True):
            of_group.setdefault(group, set()).add(str(own))
        assert not any({"train", "val"} <= found for found in of_group.values())
        for label in set(fold["label"].to_pylist()):
            own = splits[np.array(fold["label"].to_pylist()) == label]
            assert (own == "val").sum() in (3, 4, 5)
    assert set(validates[np.array(manifest["split"].to_pylist()) == "train"]) == {1}
    with pytest.raises(ConfigurationError, match="--folds 9: a class has 6 groups"):
        folds_of(manifest, 9)
    with pytest.raises(ConfigurationError, match="--folds 1: give 2 or more"):
        folds_of(manifest, 1)


def test_every_cell_is_judged_once_by_a_model_that_did_not_see_it(
    shipped: ModelBundle, tmp_path: Path, ray_cluster: None
) -> None:
    def split(name: str) -> str:
        return "test" if name.endswith("5.jpg") else "train"

    manifest = manifest_of(write_cells(tmp_path / "cells", 7), split)
    seen: list[set[str]] = []

    def trained(number: int, fold: pa.Table) -> ModelBundle:
        assert number == len(seen) + 1
        seen.append(set(fold.filter(pc.field("split") == "train")["image_uri"].to_pylist()))
        return shipped

    found = out_of_fold(manifest, 3, trained, "cells")
    ours = set(manifest.filter(pc.field("split") != "test")["image_uri"].to_pylist())
    assert len(seen) == 3
    assert [sum(uri not in train for train in seen) for uri in sorted(ours)] == [1] * len(ours)
    assert len(found.right) == len(found.confidence) == len(ours) == 6 * len(CLASSES)
    assert ((found.confidence > 1 / 8) & (found.confidence <= 1)).all()


@pytest.mark.parametrize(
    ("num_images", "num_wrong", "is_kept"), [(3000, 3, True), (500, 40, False)]
)
def test_what_goes_to_review_follows_from_them(
    num_images: int, num_wrong: int, is_kept: bool, shipped: ModelBundle, tmp_path: Path
) -> None:
    cells = held_out(num_images, num_wrong)
    bundle = with_review(shipped, cells, cells.confidence)
    review: dict[str, Any] = bundle.facts["review"]
    kept = cells.confidence >= bundle.calibration.review_below
    assert (bundle.calibration.review_below < 1) == is_kept
    if is_kept:
        assert review["num_kept"] == kept.sum() > num_images / 2
        assert review["num_wrong"] == (~cells.right & kept).sum() == num_wrong
    else:
        assert review["num_kept"] == review["num_wrong"] == 0
    bundle.save(str(tmp_path))
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert f"{num_images:,} images, each judged by one of 3 models trained without it" in card


def test_a_surer_model_keeps_no_larger_share(shipped: ModelBundle) -> None:
    cells = held_out(3000, 60)
    own = np.sqrt(cells.confidence)
    share = np.mean(cells.confidence >= review_of(shipped, cells, cells.confidence))
    assert 0.5 < share < 0.75
    assert np.mean(own >= review_of(shipped, cells, own)) == pytest.approx(share, abs=0.001)
    less = cells.confidence**2
    assert review_of(shipped, cells, less) == review_of(shipped, cells, cells.confidence)


def review_of(shipped: ModelBundle, cells: HeldOut, own: np.ndarray) -> float:
    return with_review(shipped, cells, own).calibration.review_below
