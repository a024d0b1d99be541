"""The model that a run was begun with, also where the endpoint has got another one since."""

from __future__ import annotations

from bloodcells.bundle import Calibration, ModelBundle, shipped_bundle_uri
from bloodcells.errors import BundleError
from bloodcells.pipeline.run_request import SHIPPED
from bloodcells.runs import Run


def model_of(run: Run) -> tuple[ModelBundle, str]:
    """Return a run's own model and its URI.

    Raises:
        BundleError: it is no longer where it was.
        StorageError: the place cannot be reached.
    """
    origin, digest = str(run.bundle.get("uri", "")), run.settings.bundle_digest
    uri = shipped_bundle_uri() if origin == SHIPPED else origin.partition("@sha256:")[0]
    try:
        return ModelBundle.load(f"{uri}@{digest}"), uri
    except BundleError as error:
        raise BundleError(
            f"this run was begun with the model {digest}, which is no longer where it was; put it "
            "back and resume the run, or start a new one"
        ) from error


class Calibrations:
    """What is known of the bundles that runs were scored with; each is looked up once.

    Args:
        bundle: the endpoint's model.
    """

    def __init__(self, bundle: ModelBundle) -> None:
        self._known = {bundle.digest: bundle.calibration}

    def of(self, run: Run) -> Calibration:
        """Return the calibration of a run's bundle.

        Raises:
            BundleError: it is no longer where it was.
            StorageError: the place cannot be reached.
        """
        digest = run.settings.bundle_digest
        if digest not in self._known:
            self._known[digest] = model_of(run)[0].calibration
        return self._known[digest]
