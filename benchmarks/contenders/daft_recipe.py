"""Daft as its documentation has it: glob → download → decode → resize → class UDF → Parquet.

Source: https://docs.daft.ai/en/stable/modalities/images/ and custom-code/cls/.
"""

from __future__ import annotations

from typing import Any

import daft
import numpy as np
import torch
from daft import DataType, col
from daft.functions import decode_image, download, resize

from benchmarks.contenders.script import BATCH_SIZE, arguments, load_model
from bloodcells.bundle import ModelBundle
from bloodcells.cells import CLASSES


@daft.cls
class Classifier:
    """Daft's class UDF: loads the model once, classifies batches."""

    def __init__(self, bundle: str, side: int) -> None:
        self.model = load_model(bundle)
        self.side = side

    @daft.method.batch(
        return_dtype=DataType.struct(
            {"predicted_class": DataType.string(), "confidence": DataType.float32()}
        ),
        batch_size=BATCH_SIZE,
    )
    def classify(self, images: Any) -> Any:
        """Return class and confidence of each picture of a ``daft.Series``."""
        pixels = np.stack(images.to_pylist())
        with torch.inference_mode():
            probabilities = self.model(torch.from_numpy(pixels)).softmax(dim=1)
        confidence, index = probabilities.max(dim=1)
        return [
            {"predicted_class": CLASSES[k], "confidence": float(p)}
            for k, p in zip(index.tolist(), confidence.tolist(), strict=True)
        ]


def main() -> None:
    """Classify a folder of images."""
    parser = arguments(__doc__)
    parser.add_argument("--images", required=True, help="folder of JPEG files")
    flags = parser.parse_args()
    side = ModelBundle.load(flags.bundle).preprocess.size
    classifier = Classifier(flags.bundle, side)
    (
        daft.from_glob_path(f"{flags.images}/**/*.jpg")
        .with_column("image", resize(decode_image(download(col("path")), mode="RGB"), side, side))
        .with_column("answer", classifier.classify(col("image")))
        .select("path", col("answer").get("predicted_class"), col("answer").get("confidence"))
        .write_parquet(str(flags.out))
    )


if __name__ == "__main__":
    main()
