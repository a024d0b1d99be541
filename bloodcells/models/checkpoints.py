"""Other people's weights, and ours: a file of tensors into a classifier, or a sentence why not.

Reads safetensors and PyTorch files, of timm, of torchvision (VGG, EfficientNet), of training
scripts that wrap them, and of our bundles. Nothing in a file is executed. Knows nothing of hubs.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import io
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.models.efficientnet import EfficientNet
from timm.models.vgg import VGG
from torch import Tensor, nn

from bloodcells import storage
from bloodcells.errors import ConfigurationError
from bloodcells.models.classifier import Classifier, dense_layers

_FILES_OF_A_FOLDER: Final = ("weights.safetensors", "model.safetensors", "pytorch_model.bin")
"""What is looked for where a folder is named: a bundle's weights, or those of a downloaded hub."""

_NESTS: Final = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which training scripts keep weights, the averaged ones first, as timm reads them."""

DETECTOR_PREFIX: Final = "detector."
"""What names in a bundle's file begin with that are not the network's but its detector's."""

_PREFIXES: Final = ("module.", "_orig_mod.", "backbone.")
"""What wrappers put before every name: DDP, ``torch.compile``, and our own classifier."""


def load_checkpoint(model: Classifier, uri: str) -> str:
    """Fill a classifier with the tensors of a file.

    A dense layer of another number of classes is left out, and ours stays as it was drawn. Every
    other tensor must be there and fit, and none may be left over.

    Args:
        model: the classifier; changed in place, or not at all.
        uri: a file, local or ``s3://``, or a folder: a bundle's, or a download of the timm hub.

    Returns:
        Which file it was, its sha256, and what became of the dense layer; without its folder.

    Raises:
        ConfigurationError: it is no file of weights, or of another model.
        StorageError: it cannot be read.
    """
    uri = _file_of(storage.normalise(uri))
    data = storage.read(uri)
    backbone = model.backbone
    tensors = _unwrapped(_parsed(data, uri), uri)
    tensors = _renamed(tensors, backbone, uri)
    wanted = backbone.state_dict()
    head = _head_names(backbone)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    keeps_head = all(shapes.get(name) == wanted[name].shape for name in head)
    if not keeps_head:
        tensors = {name: tensor for name, tensor in tensors.items() if name not in head}
    if isinstance(backbone, VGG):  # the 4096-wide layers that our VGGs go without
        tensors = {n: t for n, t in tensors.items() if not n.startswith("pre_logits.")}
    _require_fit(tensors, wanted, () if keeps_head else head, uri)
    backbone.load_state_dict(wanted | tensors, strict=True)
    dense = "with its dense layer" if keeps_head else "its dense layer drawn anew"
    return f"{storage.name_of(uri)} (sha256:{hashlib.sha256(data).hexdigest()}), {dense}"


def _file_of(uri: str) -> str:
    """Return the file that a URI means: itself, or the weights in the folder that it is."""
    if not storage.stat(uri).is_folder:
        return uri
    for name in _FILES_OF_A_FOLDER:
        if storage.exists(storage.join(uri, name)):
            return storage.join(uri, name)
    raise ConfigurationError(
        f"--weights {uri} is a folder without {', '.join(_FILES_OF_A_FOLDER)}; name the file"
    )


def _parsed(data: bytes, uri: str) -> Any:
    """Return what a file holds; by its first bytes, whatever its name."""
    if data[8:9] == b"{":
        try:
            return safetensors.torch.load(data)
        except safetensors.SafetensorError as error:
            raise _unreadable(uri, str(error)) from error
    if data[:4] != b"PK\x03\x04" and data[:1] != b"\x80":
        raise _unreadable(uri, "it begins like neither safetensors nor a PyTorch file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm's scripts keep theirs
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigurationError(
            f"--weights {uri} holds more than tensors, and is not run; where you trust it, save "
            "model.state_dict() alone with safetensors.torch.save_file, and give that"
        ) from error
    except (
        *(AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    ) as error:  # of which kind depends on where a torn file was torn
        raise _unreadable(uri, str(error).partition("\n")[0]) from error


def _unreadable(uri: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"--weights {uri} cannot be read ({why}); give a .safetensors or .pth file"
    )


def _unwrapped(content: Any, uri: str) -> dict[str, Tensor]:
    """Return the named tensors inside what a training script saved."""
    while isinstance(content, Mapping):
        inner = next((k for k in _NESTS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = content[inner]
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        raise ConfigurationError(
            f"--weights {uri} holds no named tensors; give the state_dict of a model"
        )
    tensors = {
        str(name): tensor
        for name, tensor in content.items()
        if not str(name).startswith(DETECTOR_PREFIX)
    }
    while prefix := next((p for p in _PREFIXES if tensors and _all_begin(tensors, p)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _all_begin(names: Iterable[str], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)


def _renamed(tensors: dict[str, Tensor], backbone: nn.Module, uri: str) -> dict[str, Tensor]:
    """Give tensors the names of this version of timm, where their own are others."""
    if tensors.keys() == backbone.state_dict().keys():
        return tensors
    if isinstance(backbone, EfficientNet) and "features.0.0.weight" in tensors:
        return _from_torchvision(tensors, backbone, uri)
    module = sys.modules[type(backbone).__module__]
    names = ("checkpoint_filter_fn", "_filter_fn")
    rename: Callable[..., Any] | None = next(
        (getattr(module, n) for n in names if hasattr(module, n)), None
    )
    if rename is None:
        return tensors
    arguments = (tensors, backbone)[: len(inspect.signature(rename).parameters)]
    try:
        return dict(rename(*arguments))
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, ValueError):
        return tensors  # not what timm expects; what does not fit is named by the caller


def _from_torchvision(
    tensors: dict[str, Tensor], backbone: EfficientNet, uri: str
) -> dict[str, Tensor]:
    """Name torchvision's EfficientNet as timm does: both list the same layers in one order."""
    if any(isinstance(layer, Conv2dSame) for layer in backbone.modules()):
        raise ConfigurationError(
            f"--weights {uri} are torchvision's, which pads pictures evenly; this model pads them "
            "as TensorFlow does, so they would not fit: give weights of timm"
        )
    head = _head_names(backbone)
    ours = [name for name in backbone.state_dict() if name not in head]
    theirs = {name: t for name, t in tensors.items() if not name.startswith("classifier.")}
    if len(ours) != len(theirs):
        return tensors
    dense = {
        f"classifier.{part}": tensors.get(f"classifier.1.{part}") for part in ("weight", "bias")
    }
    return dict(zip(ours, theirs.values(), strict=True)) | {
        name: tensor for name, tensor in dense.items() if tensor is not None
    }


def _head_names(backbone: nn.Module) -> tuple[str, ...]:
    """Return the dense layers' tensors, as the backbone's ``state_dict`` names them."""
    inside = {id(p) for layer in dense_layers(backbone) for p in layer.parameters()}
    return tuple(name for name, p in backbone.named_parameters() if id(p) in inside)


def _require_fit(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], absent: tuple[str, ...], uri: str
) -> None:
    """Refuse tensors that are not those of the model, or not numbers."""
    missing = [  # a count that PyTorch keeps since version 0.4 and inference never reads
        n for n in wanted if n not in tensors and n not in absent and "num_batches_tracked" not in n
    ]
    unexpected = [name for name in tensors if name not in wanted]
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
        )
        if names
    ]
    if faults:
        raise ConfigurationError(
            f"--weights {uri} are not those of this model: of its tensors {'; '.join(faults)}; "
            "give the --model that they belong to, or other weights"
        )
    for name, tensor in tensors.items():
        floats = wanted[name].is_floating_point()
        if floats != tensor.is_floating_point() or (floats and not bool(tensor.isfinite().all())):
            raise ConfigurationError(
                f"--weights {uri}: the tensor {name} holds something else than finite numbers "
                f"({tensor.dtype}); give an undamaged file, not quantised"
            )
