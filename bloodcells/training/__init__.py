"""Training: labelled stores to a model bundle, on a Ray cluster.

``ingest`` puts decoded pixels into the object store, ``loop`` is what each worker runs, ``fit``
starts the workers and makes a bundle of what they learnt.
"""

from bloodcells.training.fit import fit
from bloodcells.training.ingest import LabelledPixels, load_labelled
from bloodcells.training.recipe import OPTIMIZERS, Recipe

__all__ = ["OPTIMIZERS", "LabelledPixels", "Recipe", "fit", "load_labelled"]
