"""What the shipped bundle may spare review, by models like it that did not see the cells.

``python -m benchmarks.stand_ins --store 'pbc/pbc-*.tar' --splits pbc/labels.csv --work FOLDER
--bundle BUNDLE --out BUNDLE2`` trains two stand-ins, each on half of the cells and for less long
than the bundle, which took a GPU; ``jobs.train --folds`` does the same with whole trainings. The
same command goes on where a killed one was.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import softmax

from bloodcells import storage
from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.grouping import Grouping
from bloodcells.pipeline.cluster import start_ray
from bloodcells.pipeline.preparing import build_manifest
from bloodcells.splits import read_split_table
from bloodcells.training.folds import out_of_fold, with_review
from bloodcells.training.home import features_of
from bloodcells.training.ingest import load_images
from bloodcells.training.recipe import Recipe, Stage
from bloodcells.training.run import Means, TrainingRequest, train_bundle

NUM_FOLDS = 2
STAGES = (
    Stage(name="robust", epochs=7, averaging=0.99, coarse=0.5, augment=0.6),
    Stage(name="home", epochs=1, learning_rate=5e-5, averaging=0.98, augment=0.6, recall=0.2),
)
NOTE = (
    "Those models were trained for less long than this one (7 and 1 epochs, 0.6 of the "
    "augmentation), each on half of the images."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", nargs="+", required=True, help="labelled stores")
    parser.add_argument("--splits", required=True, help="CSV: shard, member, split")
    parser.add_argument("--work", required=True, help="folder of the stand-ins")
    parser.add_argument("--bundle", default=shipped_bundle_uri())
    parser.add_argument("--out", required=True, help="folder of the bundle with its threshold")
    options = parser.parse_args()
    bundle = ModelBundle.load(options.bundle)
    start_ray()
    splits = Grouping(splits=read_split_table(options.splits))
    request = TrainingRequest(
        manifest=build_manifest(options.store, grouping=splits).manifest,
        source=", ".join(options.store),
        stores=options.store,
        recipe=replace(Recipe(), model=bundle.model_name, stages=STAGES),
        preprocess=bundle.preprocess,
    )

    def trained(number: int, manifest: pa.Table) -> ModelBundle:
        place = storage.join(options.work, f"fold-{number}")
        return train_bundle(place, replace(request, manifest=manifest), Means(), print)

    judged = out_of_fold(request.manifest, NUM_FOLDS, trained, request.source)
    held_out = request.manifest.filter(pc.field("used") & (pc.field("split") == "val"))
    images = load_images(held_out, bundle.preprocess, request.source)[0]
    logits = features_of(bundle, images)[1].astype(np.float64)
    probabilities = softmax(logits / bundle.calibration.temperature, axis=1)
    found = with_review(bundle, judged, probabilities.max(1))
    review = {**found.facts["review"], "note": NOTE}
    replace(found, facts={**found.facts, "review": review}).save(options.out)
    kept = probabilities.max(1) >= found.calibration.review_below
    wrong = probabilities.argmax(1) != images.labels
    print(
        f"out of fold: {judged.right.mean():.4f} of {len(judged.right):,} cells are right; the "
        f"{review['num_kept']:,} surest hold {review['num_wrong']} errors\n"
        f"the bundle: of {len(kept)} validation cells {kept.mean():.1%} are spared review at "
        f"{found.calibration.review_below:.4f}, {int((wrong & kept).sum())} of them wrong"
    )


if __name__ == "__main__":
    main()
