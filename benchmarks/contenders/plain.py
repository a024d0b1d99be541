"""The script that anybody would write first: a PyTorch DataLoader over files, a model, Parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.contenders.script import BATCH_SIZE, arguments, load_model, write_table
from bloodcells.bundle import ModelBundle
from bloodcells.imaging import Preprocess, decode

NUM_WORKERS = 2


class ImageFiles(Dataset[tuple[torch.Tensor, str]]):
    """Files of a folder tree as pixels ``uint8 (S, S, 3)`` and names."""

    def __init__(self, folder: Path, preprocess: Preprocess, decoder: str) -> None:
        self.paths = sorted(str(path) for path in folder.rglob("*.jpg"))
        self.preprocess = preprocess
        self.decoder = decoder

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        path = self.paths[index]
        if self.decoder == "ours":
            pixels = decode(Path(path).read_bytes(), self.preprocess).pixels
        else:
            side = self.preprocess.size
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB").resize((side, side)))
        return torch.from_numpy(pixels), path


def main() -> None:
    """Classify a folder of images."""
    parser = arguments(__doc__)
    parser.add_argument("--images", required=True, type=Path, help="folder of JPEG files")
    parser.add_argument("--decoder", choices=("pillow", "ours"), default="pillow")
    parser.add_argument("--folded", action="store_true", help="with our for_inference")
    flags = parser.parse_args()
    model = load_model(flags.bundle, folded=flags.folded)
    preprocess = ModelBundle.load(flags.bundle).preprocess
    dataset = ImageFiles(flags.images, preprocess, flags.decoder)
    names: list[str] = []
    logits = []
    with torch.inference_mode():
        for pixels, paths in DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=NUM_WORKERS):
            logits.append(model(pixels).numpy())
            names += paths
    write_table(flags.out, names, logits)


if __name__ == "__main__":
    main()
