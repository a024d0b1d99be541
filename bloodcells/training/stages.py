"""What a stage of fine-tuning trains: names of parameters, and batch norms that stand still.

Knows nothing of optimizers, data or recipes. ``unfreeze`` is one of

- ``head``: the dense layer;
- ``all``: everything;
- ``blocks:N``: the head, and the last N blocks of the features in the model's own order (see
  :func:`blocks`);
- ``keras:N``: the head, and the convolutions among the last N of the 741 Keras layers of
  EfficientNetV2-M, as the published method has it; for that model only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bloodcells.errors import ConfigurationError
from bloodcells.models import Classifier, head_parameters
from bloodcells.training.keras_layers import BATCH_NORM, CONVOLUTIONS, keras_layers

_COUNTED: Final = re.compile(r"(?P<unit>blocks|keras):(?P<count>[0-9]+)")
_BACKBONE: Final = "backbone."


def parse_unfreeze(unfreeze: str) -> tuple[str, int]:
    """Split ``unfreeze`` into its word and its number (0 where it has none).

    Raises:
        ConfigurationError: it is none of the four kinds.
    """
    if unfreeze in ("head", "all"):
        return unfreeze, 0
    counted = _COUNTED.fullmatch(unfreeze)
    if counted is None or int(counted["count"]) < 1:
        raise ConfigurationError(
            f"unfreeze {unfreeze!r}: write head, all, blocks:N or keras:N, with N of 1 or more"
        )
    return counted["unit"], int(counted["count"])


def trainable(model: Classifier, unfreeze: str, *, train_batch_norm: bool) -> tuple[str, ...]:
    """Return the parameters that a stage trains.

    Args:
        model: the classifier; may be on the meta device.
        unfreeze: see the module.
        train_batch_norm: whether scales and biases of the unfrozen batch norms are among them;
            those of other batch norms never are.

    Returns:
        Names as in ``model.named_parameters()``, in its order.

    Raises:
        ConfigurationError: ``unfreeze`` is misspelt, asks for more than there is, or does not go
            with this model.
    """
    unit, count = parse_unfreeze(unfreeze)
    chosen = set(head_parameters(model))
    if unit == "all":
        chosen.update(name for name, _ in model.named_parameters())
    elif unit == "blocks":
        chosen.update(_last_blocks(model, count))
    elif unit == "keras":
        chosen.update(_last_keras_layers(model, count))
    if not train_batch_norm:
        chosen -= _batch_norm_parameters(model)
    return tuple(name for name, _ in model.named_parameters() if name in chosen)


def apply_stage(model: Classifier, names: Iterable[str], *, train_batch_norm: bool) -> None:
    """Let exactly these parameters be trained, and batch norms that are not stand still.

    Puts the model into training mode as :func:`train_mode` does. A wrapper such as DDP looks at
    ``requires_grad`` when it is made, so it is to be made after this, once a stage.

    Args:
        model: the classifier.
        names: what :func:`trainable` returned.
        train_batch_norm: as it was given to :func:`trainable`.

    Raises:
        ValueError: a name is no parameter's, or a batch norm's that is not to be trained.
    """
    wanted = set(names)
    allowed = {name for name, _ in model.named_parameters()}
    if not train_batch_norm:
        allowed -= _batch_norm_parameters(model)
    if strangers := sorted(wanted - allowed):
        raise ValueError(f"not to be trained in this stage: {', '.join(strangers[:3])}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted)
    train_mode(model)


def train_mode(model: nn.Module) -> None:
    """Put a model into training mode, all but its frozen batch norms; use it for ``.train()``."""
    model.train()
    freeze_batch_norm(model)


def freeze_batch_norm(model: nn.Module) -> None:
    """Put every batch norm that is not trained into evaluation mode; needed after ``.train()``.

    Such a layer uses the statistics it came with and does not renew them, as a layer of Keras with
    ``trainable = False``. One is trained where its scale is, so in a stage with
    ``train_batch_norm=False`` all stand still, and otherwise those of the frozen blocks.
    """
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) and not any(p.requires_grad for p in layer.parameters()):
            layer.eval()


def blocks(model: Classifier) -> list[list[str]]:
    """Return the parameters of each block of the features, the first block (the stem) first.

    In EfficientNets a block is one MBConv, in VGG one convolution, in ``custom_cnn`` one of its
    four, in transformers one layer. What stands between the last block and the head (``conv_head``,
    a last norm) is with the last block; a norm by itself goes with what is before it.

    Raises:
        ConfigurationError: timm does not tell this model's blocks apart.
    """
    backbone = model.backbone
    try:
        matcher = backbone.group_matcher(coarse=False)  # type: ignore[operator]
    except (AttributeError, NotImplementedError) as error:
        raise ConfigurationError(
            f"unfreeze blocks:N: timm does not tell the blocks of a {type(backbone).__name__} "
            "apart; use head or all"
        ) from error
    groups = group_parameters(backbone, matcher)
    head = set(head_parameters(model))
    wide = {name for name, p in model.named_parameters() if p.ndim > 1}
    found: list[list[str]] = []
    for key in sorted(groups):
        names = [_BACKBONE + name for name in groups[key]]
        beside_head = not head.isdisjoint(names)  # timm's group of all that is in no block
        names = [name for name in names if name not in head]
        if found and (beside_head or wide.isdisjoint(names)):
            found[-1].extend(names)  # what is left over, or a norm alone, is no block
        else:
            found.append(names)
    return found


def _last_blocks(model: Classifier, count: int) -> set[str]:
    found = blocks(model)
    if count > len(found):
        raise ConfigurationError(
            f"unfreeze blocks:{count}: the model has {len(found)} blocks, its stem included; "
            f"use at most blocks:{len(found)}, or all"
        )
    return {name for names in found[len(found) - count :] for name in names}


def _last_keras_layers(model: Classifier, count: int) -> set[str]:
    layers = keras_layers()
    parameters = {name for name, _ in model.named_parameters()}
    mapped = {layer.timm_name for layer in layers if layer.timm_name}
    owners = {n.removeprefix(_BACKBONE).rpartition(".")[0] for n in parameters}
    if owners - mapped != {"classifier"} or mapped - owners:
        raise ConfigurationError(
            f"unfreeze keras:{count} counts the layers of EfficientNetV2-M; "
            "use --model efficientnetv2_m, or blocks:N"
        )
    if count > len(layers):
        raise ConfigurationError(
            f"unfreeze keras:{count}: Keras' EfficientNetV2-M has {len(layers)} layers; "
            f"use at most keras:{len(layers)}"
        )
    return {
        name
        for layer in layers[-count:]
        if layer.kind in (*CONVOLUTIONS, BATCH_NORM)
        for name in (f"{_BACKBONE}{layer.timm_name}.weight", f"{_BACKBONE}{layer.timm_name}.bias")
        if name in parameters
    }


def _batch_norm_parameters(model: nn.Module) -> set[str]:
    return {
        f"{prefix}.{name}"
        for prefix, layer in model.named_modules()
        if isinstance(layer, _BatchNorm)
        for name, _ in layer.named_parameters(recurse=False)
    }
