"""The model that a run was begun with, where the endpoint has got another one since."""

from __future__ import annotations

from bloodcells.bundle import ModelBundle, shipped_bundle_uri
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
