"""Other labs: how a store's pictures differ from the training lab's, and what to do about it.

``rulers`` measure pictures by what does not depend on the mix of cells, ``home`` says how far such
measures lie from the training lab's, ``comparison`` measures a store against it, ``profile`` holds
what came of it, ``sample`` chooses the pictures that are looked at. What suits another lab,
``site_search`` finds out with a model.
"""

from bloodcells.sites.comparison import compare_with_home, measure_all
from bloodcells.sites.home import MIN_IMAGES, HomeReference
from bloodcells.sites.profile import AUTO, NONE, SITE_NAME, SiteProfile, Standing, network_at
from bloodcells.sites.rulers import SIDE_PX, measure
from bloodcells.sites.sample import sample_images

__all__ = [
    "AUTO",
    "MIN_IMAGES",
    "NONE",
    "SIDE_PX",
    "SITE_NAME",
    "HomeReference",
    "SiteProfile",
    "Standing",
    "compare_with_home",
    "measure",
    "measure_all",
    "network_at",
    "sample_images",
]
