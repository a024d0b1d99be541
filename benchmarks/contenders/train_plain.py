"""What one would write by hand: a DataLoader that decodes and augments in two workers.

Pillow decodes every image in every epoch; torchvision v2 augments it as our default does (free
rotation, flips, zoom, shift, colour, blur); one process trains on all cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from lion_pytorch import Lion
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from bloodcells.cells import CLASSES
from bloodcells.models import create_model

BATCH_SIZE = 64


class Cells(Dataset[tuple[torch.Tensor, int]]):
    """JPEG files in folders named after their class."""

    def __init__(self, folder: Path, size: int, crop: float) -> None:
        self.files = sorted(folder.glob("*/*.jpg"))
        self.crop = crop
        self.transform = v2.Compose(
            [
                v2.ToImage(),
                v2.RandomAffine(
                    180, (0.06, 0.06), (0.8, 1.25), interpolation=v2.InterpolationMode.BILINEAR
                ),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.ColorJitter(0.1, 0.1, 0.1, 0.02),
                v2.RandomApply([v2.GaussianBlur(7, (0.05, 1.0))], 0.5),
                v2.CenterCrop(size),
            ]
        )
        self.side = round(size * min(1.0, 1.55 * crop) / crop)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path = self.files[index]
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        side = round(min(image.size) * min(1.0, 1.55 * self.crop))
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((self.side, self.side))
        return self.transform(image).permute(1, 2, 0), CLASSES.index(path.parent.name)


def main() -> None:
    """Train for some epochs and print the last loss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True, type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--epochs", type=int, required=True)
    flags = parser.parse_args()
    torch.manual_seed(0)
    model = create_model(flags.model, dropout=0.2).to(memory_format=torch.channels_last).train()
    optimizer = Lion(model.parameters(), lr=1e-5, weight_decay=0.05)
    loader = DataLoader(
        Cells(flags.images, 96, 0.65),
        BATCH_SIZE,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
    )
    for _ in range(flags.epochs):
        for pixels, labels in loader:
            logits = model(pixels)
            loss = functional.cross_entropy(logits, labels, label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    print(f"loss {float(loss):.4f}")


if __name__ == "__main__":
    main()
