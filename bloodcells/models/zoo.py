"""Which models there are, and how one is built by name. Knows nothing of weights.

A name is one of ``ZOO`` or any of timm's, with or without the tag of its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import timm
import torch
from timm.layers.classifier import ClassifierHead
from torch import nn

from bloodcells.errors import ConfigurationError
from bloodcells.models.classifier import Classifier, dense_layers
from bloodcells.models.custom_cnn import CustomCNN

DEFAULT_MODEL: Final = "tf_efficientnet_lite0"
"""The backbone of the shipped bundle: 3.4 M parameters, 0.14 GFLOP for an image of 96 px."""

FLAGSHIP_MODEL: Final = "efficientnetv2_m"
"""The published method's best: 52.9 M parameters, 2 GFLOP for an image of 96 px."""


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """One named model.

    Attributes:
        timm_name: what timm calls it, with the tag of its weights; ``None`` for our own network.
        about: what it is, in a few words.
    """

    timm_name: str | None
    about: str


ZOO: Final[dict[str, ZooEntry]] = {
    "custom_cnn": ZooEntry(timm_name=None, about="four blocks of convolution, no weights"),
    "vgg16": ZooEntry(timm_name="vgg16.tv_in1k", about="its 4096-wide dense layers left out"),
    "vgg19": ZooEntry(timm_name="vgg19.tv_in1k", about="its 4096-wide dense layers left out"),
    "efficientnet_b0": ZooEntry(timm_name="efficientnet_b0.ra_in1k", about="small"),
    "efficientnet_b2": ZooEntry(timm_name="efficientnet_b2.ra_in1k", about="small"),
    "efficientnetv2_b2": ZooEntry(timm_name="tf_efficientnetv2_b2.in1k", about="small"),
    "efficientnetv2_m": ZooEntry(
        timm_name="tf_efficientnetv2_m.in21k_ft_in1k", about="the flagship, default on GPUs"
    ),
    "tf_efficientnet_lite0": ZooEntry(
        timm_name="tf_efficientnet_lite0.in1k", about="the default on CPUs"
    ),
}
"""The models of the published comparison and the project's own; all others go by timm's names.

timm has an ``efficientnetv2_m`` of its own, without weights and padded otherwise; here that name is
TensorFlow's, whose weights the published method started from.
"""


def default_model(device: str) -> str:
    """Return the model to train on a kind of device, ``"cpu"`` or ``"cuda"``."""
    return FLAGSHIP_MODEL if device == "cuda" else DEFAULT_MODEL


def timm_name(name: str) -> str | None:
    """Return what timm calls a model, or ``None`` where it is not timm's."""
    return ZOO[name].timm_name if name in ZOO else name


def is_known(name: str) -> bool:
    """Return whether :func:`build` can build a model of this name."""
    if name in ZOO:
        return True
    if not timm.is_model(name):
        return False
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:  # the architecture is there, the tag after the dot is not
        return False
    return True


def require_known(name: str) -> None:
    """Refuse a name that is no model's.

    Raises:
        ConfigurationError: it is not; says which there are.
    """
    if not is_known(name):
        raise ConfigurationError(f"--model {name}: there is no such model; {_hint(name)}")


def build(
    name: str, *, num_classes: int, dropout: float = 0.0, pretrained: dict[str, Any] | None = None
) -> Classifier:
    """Build a classifier, its dense layer drawn at random, and all else unless ``pretrained``.

    On ``torch.device("meta")`` nothing is computed or held, whatever the size of the model.

    Args:
        name: see the module.
        num_classes: width of the dense layer.
        dropout: probability before the dense layer, in training.
        pretrained: where given, timm loads its weights; the values replace fields of the
            configuration that timm keeps of them.

    Raises:
        ConfigurationError: there is no model of this name.
    """
    require_known(name)
    theirs = timm_name(name)
    backbone: Any
    if theirs is None:
        backbone = CustomCNN(num_classes, dropout)
    elif theirs.startswith("vgg"):
        backbone = _vgg(theirs, num_classes, dropout, pretrained)
    else:
        backbone = _of_any_size(theirs, num_classes, dropout, pretrained)
    # timm draws a narrow dense layer so wide that training starts far above the loss of a guess.
    for layer in dense_layers(backbone):
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.01)
    config = backbone.pretrained_cfg
    return Classifier(backbone, tuple(config["mean"]), tuple(config["std"]))


def require_size(name: str, size: int) -> None:
    """Refuse a size of pictures that a model cannot take; costs a pass without any arithmetic.

    Raises:
        ConfigurationError: there is no model of this name, or it needs other pictures.
    """
    with torch.device("meta"):
        model = build(name, num_classes=8).eval()
        try:
            model(torch.empty((2, size, size, 3), dtype=torch.uint8))
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            wanted = model.backbone.pretrained_cfg["input_size"][-1]  # type: ignore[index]
            raise ConfigurationError(
                f"--model {name} cannot take pictures of {size} px ({error}); it was made for "
                f"{wanted} px: give --size {wanted}, or another model"
            ) from error


def _of_any_size(
    name: str, num_classes: int, dropout: float, pretrained: dict[str, Any] | None
) -> nn.Module:
    """Build one of timm's models; a transformer so that it takes pictures of any size.

    What such a model holds (positions, say) keeps the shape it was published in.
    """
    options: dict[str, Any] = {"num_classes": num_classes, "drop_rate": dropout}
    if pretrained is not None:
        options |= {"pretrained": True, "pretrained_cfg_overlay": pretrained}
    config = timm.get_pretrained_cfg(name)
    any_size: tuple[dict[str, Any], ...] = ()
    if config is not None and config.fixed_input_size:
        any_size = ({"dynamic_img_size": True, "dynamic_img_pad": True}, {"dynamic_img_size": True})
    model: nn.Module
    for more in any_size:
        try:
            model = timm.create_model(name, **more, **options)
        except TypeError:  # its constructor has no such argument
            continue
        return model
    model = timm.create_model(name, **options)
    return model


def _vgg(
    name: str, num_classes: int, dropout: float, pretrained: dict[str, Any] | None
) -> nn.Module:
    """Build a VGG whose features are averaged and go to the dense layer: 15 M instead of 134 M.

    Two dense layers of 4096, made for 224 px, stand between in the original. The published head is
    the same in all its models: global average pooling, dropout, dense.
    """
    device = torch.get_default_device()
    model: Any
    if pretrained is None:
        with torch.device("meta"):  # what is thrown away is never there
            model = timm.create_model(name)
    else:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=pretrained)
    width = model.feature_info[-1]["num_chs"]
    model.pre_logits = nn.Identity()
    model.head = ClassifierHead(width, num_classes, drop_rate=dropout)
    model.head_hidden_size = width
    model.num_classes = num_classes
    if pretrained is None and device.type != "meta":
        model.to_empty(device=device)
        model._initialize_weights()
    built: nn.Module = model
    return built


def _hint(name: str) -> str:
    word = name.split(".")[0].rstrip("0123456789").split("_")[-1]
    close = timm.list_models(f"*{word}*")[:5] if word else []
    also = f", or of timm's, e.g., {', '.join(close)}" if close else ""
    return f"choose one of {', '.join(ZOO)}{also}"
