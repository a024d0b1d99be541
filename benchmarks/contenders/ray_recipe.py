"""Ray Data as its documentation has it: ``read_images`` → ``map_batches`` → ``write_parquet``.

Source: https://docs.ray.io/en/latest/data/batch_inference.html and working-with-images.html.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
import torch

from benchmarks.contenders import NUM_CORES
from benchmarks.contenders.script import BATCH_SIZE, arguments, load_model
from bloodcells.bundle import ModelBundle
from bloodcells.cells import CLASSES


class Classifier:
    """The actor of the recipe: loads the model once, classifies batches."""

    def __init__(self, bundle: str) -> None:
        self.model = load_model(bundle)

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        with torch.inference_mode():
            probabilities = self.model(torch.from_numpy(batch["image"])).softmax(dim=1)
        confidence, index = probabilities.max(dim=1)
        return {
            "path": batch["path"],
            "predicted_class": np.array(CLASSES)[index.numpy()],
            "confidence": confidence.numpy(),
        }


def main() -> None:
    """Classify a folder of images."""
    parser = arguments(__doc__)
    parser.add_argument("--images", required=True, help="folder of JPEG files")
    flags = parser.parse_args()
    side = ModelBundle.load(flags.bundle).preprocess.size
    ray.init(address="local", include_dashboard=False)  # never a cluster that happens to run here
    # An actor holds a core and reading needs one too: with an actor a core nothing would be read.
    num_actors = max(1, NUM_CORES - 1)
    (
        ray.data.read_images(flags.images, size=(side, side), mode="RGB", include_paths=True)
        .map_batches(
            Classifier,
            fn_constructor_args=(flags.bundle,),
            batch_size=BATCH_SIZE,
            compute=ray.data.ActorPoolStrategy(size=num_actors),
        )
        .write_parquet(str(flags.out))
    )


if __name__ == "__main__":
    main()
