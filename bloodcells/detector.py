"""Tells pictures that are none of the eight cell types, from what the classifier sees of them.

It costs about a hundredth of the classifier: its features are there anyway. Early ones tell best
what is new at home (``novelty``); those before the dense layer, compared with home pictures' own,
tell strangers in any lab. Knows nothing of files, of how a classifier was trained or of what is
done with strangers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from bloodcells.cells import CLASSES
from bloodcells.false_alarms import limit_for
from bloodcells.models import Classifier
from bloodcells.models.checkpoints import DETECTOR_PREFIX
from bloodcells.models.classifier import dense_layers, early_blocks
from bloodcells.novelty import KnownTypes, pooled

PICTURES_A_CLASS: Final = 100
"""Home pictures of each class that others are compared with: 2 MB for a backbone 1,280 wide."""

NEIGHBOUR: Final = 3
"""The distance is that to the third nearest: to the nearest, one odd home picture is a hole. From
the first to the fortieth there was next to no difference (docs/other-labs.md)."""

_TYPES: Final = "types."
"""Of the known types' tensors among the detector's."""

Floats = npt.NDArray[np.float32]


class Seen(NamedTuple):
    """What a classifier sees of N pictures.

    Attributes:
        last: what its dense layer is given, ``float32 (N, D)``.
        early: of its early blocks, pooled, ``float32 (N, M)``; M is 0 where it has none.
    """

    last: Floats
    early: Floats

    @classmethod
    def together(cls, batches: Sequence[Seen]) -> Seen:
        """Return what is seen of several batches as one."""
        return cls(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))


class Limits(NamedTuple):
    """What home pictures reach that a detector does not know.

    Attributes:
        typical: the median strangeness.
        strange_above: one in a hundred others is stranger, or fewer (``false_alarms``).
        novel_above: as many are more novel; ``None`` where types are not known.
    """

    typical: float
    strange_above: float
    novel_above: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Detector:
    """How far features lie from those of home pictures.

    Source: Sun et al. 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors",
    arXiv:2204.06507 (directions); Yu et al. 2023, "Block Selection Method for Using Feature Norm in
    Out-of-Distribution Detection", arXiv:2212.02295 (lengths).

    Attributes:
        bank: features of home pictures, each of length 1, ``float16 (R, D)``.
        length: the typical length of home pictures' features, ``float32 ()``.
        types: where home's cell types lie early on; ``None`` where that is not known.
    """

    bank: Tensor
    length: Tensor
    types: KnownTypes | None = None

    def strangeness(self, features: Tensor) -> Tensor:
        """Return how unlike the third nearest home picture others are, 0 to 2.

        That is one less the cosine of the angle between them, the cosine made smaller where a
        picture moves the classifier less than home pictures do: what is no cell mostly leaves it
        cold. The root of the shorter length did better than the length itself
        (docs/other-labs.md).

        Args:
            features: what the dense layer is given, ``float (N, D)``.

        Returns:
            ``float32 (N,)``.
        """
        # Among neighbours likeness is close to 1, where bfloat16 knows nothing between 0.996 and 1.
        with torch.autocast(features.device.type, enabled=False):
            lengths = features.float().norm(dim=1)
            units = functional.normalize(features.float())
            likeness = units @ self.bank.float().T
            nearest = likeness.topk(min(NEIGHBOUR, likeness.shape[1]), dim=1).values[:, -1]
            shortness: Tensor = (lengths / self.length).clamp(max=1).sqrt()
        return 1 - nearest * shortness

    @classmethod
    def of(cls, features: Floats, labels: npt.NDArray[np.int64]) -> Self:
        """Return a detector that knows some pictures.

        Args:
            features: of home pictures, ``float32 (N, D)``; the first of each class are kept.
            labels: their classes, ``int64 (N,)``.
        """
        rows = np.concatenate(
            [np.flatnonzero(labels == k)[:PICTURES_A_CLASS] for k in range(len(CLASSES))]
        )
        return cls(
            bank=functional.normalize(torch.from_numpy(features[np.sort(rows)])).half(),
            length=torch.from_numpy(features).norm(dim=1).median().clamp(min=1e-6),
        )

    @classmethod
    def fit(cls, known: Seen, labels: npt.NDArray[np.int64], held_out: Seen) -> tuple[Self, Limits]:
        """Learn what home pictures look like to a classifier.

        Args:
            known: N training pictures; the first of each class are kept.
            labels: their classes, ``int64 (N,)``.
            held_out: pictures that the classifier was not trained on.

        Returns:
            The detector, and what the held out pictures reach.
        """
        types = KnownTypes.fit(known.early, labels) if known.early.shape[1] else None
        detector = replace(cls.of(known.last, labels), types=types)
        typical, strange_above = limits_of(detector.strangeness(torch.from_numpy(held_out.last)))
        if types is None:
            return detector, Limits(typical, strange_above, None)
        _, novel_above = limits_of(types.novelty(torch.from_numpy(held_out.early)))
        return detector, Limits(typical, strange_above, novel_above)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, to be saved with the weights."""
        types = vars(self.types) if self.types else {}
        own = {"bank": self.bank, "length": self.length} | {
            f"{_TYPES}{name}": tensor for name, tensor in types.items()
        }
        return {f"{DETECTOR_PREFIX}{name}": tensor for name, tensor in own.items()}

    @classmethod
    def among(cls, tensors: Mapping[str, Tensor]) -> Self | None:
        """Take the detector out of a bundle's tensors; ``None`` where there is none.

        Raises:
            TypeError: some of its tensors are missing, or there are others.
        """
        own = {
            name.removeprefix(DETECTOR_PREFIX): tensor
            for name, tensor in tensors.items()
            if name.startswith(DETECTOR_PREFIX)
        }
        types = {
            name.removeprefix(_TYPES): own.pop(name)
            for name in list(own)
            if name.startswith(_TYPES)
        }
        return cls(**own, types=KnownTypes(**types) if types else None) if own or types else None


def limits_of(strangeness: Tensor) -> tuple[float, float]:
    """Return what is typical at home, and what one in a hundred others is above.

    Args:
        strangeness: of home pictures that the detector does not know, ``float (M,)``.
    """
    return round(float(strangeness.median()), 6), round(limit_for(strangeness.numpy()), 6)


class InspectingClassifier(nn.Module):
    """A classifier that also says how strange and how novel each picture is.

    Args:
        model: pixels to logits.
        detector: judges what the model sees; ``None`` finds nothing strange.
    """

    bank: Tensor | None
    length: Tensor

    def __init__(self, model: Classifier, detector: Detector | None) -> None:
        super().__init__()
        self.model = model
        self._seen = FeatureTap(model)
        self.register_buffer("bank", detector.bank.float() if detector else None)
        self.register_buffer("length", detector.length if detector else None)
        types = vars(detector.types) if detector and detector.types else {}
        self._types = tuple(types)
        for name, tensor in types.items():
            self.register_buffer(name, tensor)

    def forward(self, pixels: Tensor) -> Tensor:
        """Classify ``uint8 (N, S, S, 3)``.

        Returns:
            ``float32 (N, 10)``: eight logits, strangeness, novelty; what cannot be told is 0.
        """
        logits = self.model(pixels)
        strange = novel = torch.zeros_like(logits[:, 0])
        if self.bank is not None:
            detector = Detector(bank=self.bank, length=self.length)
            strange = detector.strangeness(self._seen.last)
        if self._types:
            types = KnownTypes(**{name: getattr(self, name) for name in self._types})
            novel = types.novelty(self._seen.early)
        return torch.cat([logits, strange[:, None], novel[:, None]], dim=1)


class FeatureTap:
    """Keeps what a classifier last saw.

    Attributes:
        last: what its dense layer was given, ``float (N, D)``.
    """

    def __init__(self, model: Classifier) -> None:
        self.last = torch.empty(0)
        blocks = early_blocks(model.backbone)
        self._early = [torch.empty(0, 0)] * max(1, len(blocks))

        def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.last = inputs[0]

        dense_layers(model.backbone)[0].register_forward_pre_hook(keep)
        for place, block in enumerate(blocks):
            block.register_forward_hook(self._keeping(place))

    @property
    def early(self) -> Tensor:
        """What the early blocks saw last, pooled, ``float32 (N, M)``."""
        return torch.cat(self._early, dim=1)

    def _keeping(self, place: int) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def keep(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
            self._early[place] = pooled(output)

        return keep

    def seen(self) -> Seen:
        """Return a copy of it on the CPU."""
        last = self.last.float().cpu().numpy().copy()
        early = self.early.cpu().numpy().copy()
        return Seen(last, early if early.size else np.empty((len(last), 0), np.float32))
