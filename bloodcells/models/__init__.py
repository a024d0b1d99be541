"""Classifiers by name, the weights they start from, and their fast form for scoring.

``zoo`` knows the names, ``starting`` the weights, ``folding`` makes a copy for inference. Knows
nothing of cells' images, bundles or training.
"""

from bloodcells.models.classifier import Classifier, head_parameters
from bloodcells.models.folding import for_inference
from bloodcells.models.starting import create_model, pretraining_of, start_model
from bloodcells.models.zoo import (
    DEFAULT_MODEL,
    FLAGSHIP_MODEL,
    ZOO,
    default_model,
    is_known,
    require_size,
    timm_name,
)

__all__ = [
    "DEFAULT_MODEL",
    "FLAGSHIP_MODEL",
    "ZOO",
    "Classifier",
    "create_model",
    "default_model",
    "for_inference",
    "head_parameters",
    "is_known",
    "pretraining_of",
    "require_size",
    "start_model",
    "timm_name",
]
