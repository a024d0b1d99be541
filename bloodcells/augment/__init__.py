"""Training-time augmentation: every image gets parameters of its own, anew in each epoch.

``settings`` says how far changes may go, ``keys`` makes the random numbers, ``views`` changes
pixels with them, ``tone_curve`` evens and bends their tone, ``mixing`` blends images of a batch.
Works on whole batches of tensors, on whatever device they lie but for the tone. Knows nothing of
files or models, and is used by training only: what scores an image never passes through here.
"""

from __future__ import annotations

from bloodcells.augment.keys import image_keys
from bloodcells.augment.mixing import mix
from bloodcells.augment.settings import Augmentation
from bloodcells.augment.strangers import are_strangers
from bloodcells.augment.tone_curve import toned
from bloodcells.augment.views import augment

__all__ = ["Augmentation", "are_strangers", "augment", "image_keys", "mix", "toned"]
