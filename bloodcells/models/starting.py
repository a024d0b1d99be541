"""The classifier to start training from, and a sentence saying where its weights come from.

Knows nothing of what is then trained.
"""

from __future__ import annotations

from bloodcells.cells import CLASSES
from bloodcells.errors import ConfigurationError
from bloodcells.models import hub, zoo
from bloodcells.models.checkpoints import load_checkpoint
from bloodcells.models.classifier import Classifier


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int = len(CLASSES),
    dropout: float = 0.0,
) -> Classifier:
    """Build a classifier on any architecture of the zoo or of timm.

    Args:
        name: one of ``ZOO``, or the architecture as timm calls it.
        pretrained: start from published weights: from a Python package where one ships them, else
            from the timm hub (which needs a network).
        num_classes: width of the dense layer.
        dropout: probability before the dense layer, in training.

    Raises:
        ConfigurationError: there is no such architecture, or its weights cannot be had.
    """
    if not pretrained:
        return zoo.build(name, num_classes=num_classes, dropout=dropout)
    return _published(name, num_classes, dropout)[0]


def start_model(
    name: str, *, weights: str | None = None, from_scratch: bool = False, dropout: float = 0.0
) -> tuple[Classifier, str]:
    """Return the classifier to start training from, and where its weights come from.

    A file that the user names comes first, then an installed package, then the timm hub.

    Args:
        name: one of ``ZOO``, or the architecture as timm calls it.
        weights: URI of a file or a bundle, local or ``s3://``; see
            :func:`bloodcells.models.checkpoints.load_checkpoint`.
        from_scratch: start from random weights.
        dropout: probability before the dense layer, in training.

    Returns:
        The classifier, on the CPU, in training mode, and a sentence for the model card.

    Raises:
        ConfigurationError: there is no such architecture, its weights cannot be had, the file is
            of another model, or ``weights`` and ``from_scratch`` are both given.
        StorageError: the file cannot be read.
    """
    if from_scratch and weights is not None:
        raise ConfigurationError(
            f"--weights {weights} and --from-scratch exclude each other; give one of them"
        )
    if weights is None and not from_scratch:
        return _published(name, len(CLASSES), dropout)
    model = zoo.build(name, num_classes=len(CLASSES), dropout=dropout)
    if weights is None:
        return model, "none, it was trained from random weights"
    return model, load_checkpoint(model, weights)


def pretraining_of(name: str) -> str:
    """Say where :func:`start_model` has a model's weights from if no file is given."""
    if hub.is_packaged(name):
        return f"ImageNet-1k, from the Python package {hub.package_of(name)} (Apache-2.0)"
    origin = hub.hub_origin(name)
    return f"published for timm as {origin}" if origin else "none"


def _published(name: str, num_classes: int, dropout: float) -> tuple[Classifier, str]:
    zoo.require_known(name)
    if hub.is_packaged(name):
        model = zoo.build(name, num_classes=num_classes, dropout=dropout)
        hub.load_packaged(model, name)
        return model, pretraining_of(name)
    found = dict(hub.find_on_hub(name))
    try:
        model = zoo.build(name, num_classes=num_classes, dropout=dropout, pretrained=found)
    except (OSError, RuntimeError, ValueError) as error:
        raise hub.unreachable(name, f"download failed ({' '.join(str(error).split())})") from error
    return model, pretraining_of(name)
