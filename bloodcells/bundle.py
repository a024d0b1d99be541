"""Model bundles: weights, preprocess, classes, calibration and facts, saved and verified as one.

A bundle is a folder, local or on S3: ``bundle.json``, ``weights.safetensors``, ``MODEL_CARD.md``,
and ``elsewhere/``, a whole bundle, where it has a network of its own for pictures of other labs.
Its digest covers all that decides a score or is claimed about it; loading computes it anew. Nothing
in a bundle is executed. Knows nothing of how it was trained or is used.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor

from bloodcells import storage
from bloodcells.bundle_facts import Calibration as Calibration
from bloodcells.bundle_facts import home_of
from bloodcells.bundle_facts import shipped_bundle_uri as shipped_bundle_uri
from bloodcells.cells import CLASSES
from bloodcells.detector import Detector
from bloodcells.errors import BloodcellsError, BundleError, NotFoundError
from bloodcells.imaging import Preprocess
from bloodcells.model_card import write_card
from bloodcells.models import Classifier, create_model, is_known
from bloodcells.models.checkpoints import DETECTOR_PREFIX
from bloodcells.models.early_norm import from_text, set_statistics
from bloodcells.sites import HomeReference, SiteProfile

MANIFEST_NAME: Final = "bundle.json"
WEIGHTS_NAME: Final = "weights.safetensors"
CARD_NAME: Final = "MODEL_CARD.md"
ELSEWHERE_NAME: Final = "elsewhere"
FORMAT: Final = 1
"""Layout of ``bundle.json``; a loader refuses a layout that it does not know."""

_PIN: Final = re.compile(r"(?P<uri>.+)@(?P<digest>sha256:[0-9a-f]{64})")


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelBundle:
    """A model as shipped.

    Attributes:
        model_name: the architecture, as ``models.ZOO`` or timm calls it.
        preprocess: how an image becomes pixels.
        calibration: what held-out images say about it.
        state_dict: the weights of ``models.create_model(model_name)``, in the precision they are
            shipped in (see :func:`shipping_precision`).
        facts: where it comes from, in plain values that JSON can hold: data, recipe, figures.
        home: what the training lab's pictures look like; ``None`` where it is not known.
        detector: finds pictures of no cell type; ``None`` finds none.
        elsewhere: whose network, detector and temperature see pictures of other labs, where a
            network that copes with those is less right at home; ``None`` for its own. It has the
            same preprocess, and no such bundle itself.
        classes: what the outputs stand for; always ``cells.CLASSES``.
    """

    model_name: str
    preprocess: Preprocess
    calibration: Calibration
    state_dict: Mapping[str, Tensor] = field(repr=False)
    facts: Mapping[str, Any] = field(repr=False)
    home: HomeReference | None = None
    detector: Detector | None = field(default=None, repr=False)
    elsewhere: ModelBundle | None = field(default=None, repr=False)
    classes: tuple[str, ...] = CLASSES

    def __post_init__(self) -> None:
        """Check that one way of seeing pictures suits both networks."""
        other = self.elsewhere
        if other and (other.elsewhere or other.preprocess != self.preprocess):
            raise BundleError(
                f"the bundle {other.digest} cannot be the one for other labs: it must see pictures "
                "with the same size, crop and tone, and have none for other labs itself"
            )

    @cached_property
    def digest(self) -> str:
        """``sha256:…`` over the weights and everything else but the model card."""
        digest = hashlib.sha256(_canonical(self._content()))
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return f"sha256:{digest.hexdigest()}"

    @property
    def measured(self) -> Sequence[Mapping[str, Any]]:
        """What it is known to do with other pictures than its home's; see ``BundleFacts``."""
        found: Sequence[Mapping[str, Any]] = self.facts.get("measured", ())
        return found

    def at(self, site: SiteProfile | None) -> ModelBundle:
        """Return the bundle whose network sees a site's pictures: this one, or that for other labs.

        Raises:
            BundleError: the profile asks for a network that this bundle does not have.
        """
        if site is None or site.network == "home":
            return self
        if self.elsewhere is None:
            raise BundleError(
                f"the site profile {site.digest} asks for a network for other labs, and the bundle "
                f"{self.digest} has none; make the profile anew with python -m jobs.site"
            )
        return self.elsewhere

    def build(self, site: SiteProfile | None = None) -> Classifier:
        """Return the classifier with these weights, in float32 on the CPU, ready to be trained on.

        Args:
            site: the lab whose pictures it is to see; ``None`` for its own.

        Raises:
            BundleError: the weights are not those of ``model_name``, or the site's statistics are
                not those of such a model.
        """
        own = self.at(site)
        model = create_model(own.model_name)
        try:
            model.load_state_dict(dict(own.state_dict), strict=True)
        except RuntimeError as error:
            raise BundleError(f"the weights do not fit {own.model_name}: {error}") from error
        if site is not None and site.statistics is not None:
            try:
                set_statistics(model, from_text(site.statistics))
            except ValueError as error:
                raise BundleError(
                    f"the site profile {site.digest} does not fit {own.model_name}: {error}; make "
                    "it anew with python -m jobs.site"
                ) from error
        return model

    def save(self, uri: str) -> None:
        """Write the bundle to a folder; ``bundle.json`` comes last, so half a bundle never loads.

        Raises:
            StorageError: it cannot be written there.
        """
        uri = storage.normalise(uri)
        if self.elsewhere:
            self.elsewhere.save(storage.join(uri, ELSEWHERE_NAME))
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors().items()}
        manifest = self.manifest()
        storage.put(storage.join(uri, WEIGHTS_NAME), safetensors.torch.save(tensors))
        storage.put(storage.join(uri, CARD_NAME), write_card(manifest).encode())
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        storage.put(storage.join(uri, MANIFEST_NAME), text.encode())

    def manifest(self) -> dict[str, Any]:
        """Return what ``bundle.json`` holds: all but the weights, and the digest."""
        return self._content() | {"digest": self.digest}

    @classmethod
    def load(cls, uri: str) -> ModelBundle:
        """Read a bundle and verify it.

        Args:
            uri: its folder; ``URI@sha256:…`` accepts no bundle but the one with that digest.

        Raises:
            BundleError: there is no bundle, or it is damaged, of another make, or not the one that
                was pinned.
            StorageError: the place cannot be reached.
        """
        pinned = _PIN.fullmatch(uri)
        if pinned is None and "@sha256:" in uri:
            raise BundleError(f"{uri}: after @sha256: come the digest's 64 hex digits")
        uri = storage.normalise(pinned["uri"] if pinned else uri)
        manifest = _read_manifest(uri)
        if pinned and manifest["digest"] != pinned["digest"]:
            raise BundleError(
                f"the bundle at {uri} has digest {manifest['digest']}, not the pinned "
                f"{pinned['digest']}; pin the one you mean, or restore the bundle"
            )
        try:
            weights = safetensors.torch.load(_read(uri, WEIGHTS_NAME))
        except safetensors.SafetensorError as error:
            raise _damaged(uri, f"{WEIGHTS_NAME} cannot be read ({error})") from error
        try:
            bundle = cls(
                model_name=manifest["model_name"],
                preprocess=Preprocess.from_dict(manifest["preprocess"]),
                calibration=Calibration(**manifest["calibration"]),
                state_dict={n: t for n, t in weights.items() if not n.startswith(DETECTOR_PREFIX)},
                facts=manifest["facts"],
                home=home_of(manifest),
                detector=Detector.among(weights),
                elsewhere=_elsewhere(uri, manifest),
                classes=tuple(manifest["classes"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(uri, f"{MANIFEST_NAME} does not make sense ({error})") from error
        if bundle.digest != manifest["digest"]:
            raise _damaged(uri, "its content does not have the digest it claims")
        bundle._require_usable(uri)
        return bundle

    def _tensors(self) -> dict[str, Tensor]:
        found = self.detector.tensors() if self.detector else {}
        return {**self.state_dict, **found}

    def _content(self) -> dict[str, Any]:
        known: dict[str, Any] = {"home": self.home.to_dict()} if self.home else {}
        if self.elsewhere:
            known[ELSEWHERE_NAME] = self.elsewhere.digest
        return {
            "format": FORMAT,
            "model_name": self.model_name,
            "preprocess": self.preprocess.to_dict(),
            "classes": list(self.classes),
            "calibration": self.calibration.to_dict(),
            "facts": dict(self.facts),
            **known,
        }

    def _require_usable(self, uri: str) -> None:
        """Refuse a bundle that is intact, but not one that this version can score with."""
        if self.classes != CLASSES:
            raise BundleError(
                f"the bundle at {uri} tells {', '.join(self.classes)} apart; bloodcells needs "
                f"{', '.join(CLASSES)}, in this order"
            )
        if not is_known(self.model_name):
            raise BundleError(
                f"the bundle at {uri} is a {self.model_name!r}, which timm {timm.__version__} does "
                "not have; install the timm version it was made with, or use another bundle"
            )
        with torch.device("meta"):
            wanted = create_model(self.model_name).state_dict()
        shapes = {name: tensor.shape for name, tensor in self.state_dict.items()}
        if shapes != {name: tensor.shape for name, tensor in wanted.items()}:
            raise BundleError(
                f"the weights of the bundle at {uri} are not those of a {self.model_name}; "
                "train it anew or use another bundle"
            )


def _elsewhere(uri: str, manifest: Mapping[str, Any]) -> ModelBundle | None:
    """Return the bundle for other labs that lies in a bundle's folder; ``None`` if it has none."""
    if ELSEWHERE_NAME not in manifest:
        return None
    return ModelBundle.load(f"{storage.join(uri, ELSEWHERE_NAME)}@{manifest[ELSEWHERE_NAME]}")


def shipping_precision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Round matrices and kernels to float16, half the size; vectors stay float32.

    Vectors (biases, batch norm) are few, and a running variance can leave float16's range.
    """
    return {
        name: tensor.detach().cpu().to(torch.float16 if tensor.ndim > 1 else tensor.dtype).clone()
        for name, tensor in state_dict.items()
    }


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _read(uri: str, name: str) -> bytes:
    try:
        return storage.read(storage.join(uri, name))
    except NotFoundError as error:
        raise BundleError(
            f"there is no model bundle at {uri}: {name} is missing; check the URI, "
            "or make a bundle with python -m jobs.train"
        ) from error


def _read_manifest(uri: str) -> dict[str, Any]:
    try:
        manifest = json.loads(_read(uri, MANIFEST_NAME))
    except ValueError as error:
        raise _damaged(uri, f"{MANIFEST_NAME} is not JSON ({error})") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("digest"), str):
        raise _damaged(uri, f"{MANIFEST_NAME} has no digest")
    if manifest.get("format") != FORMAT:
        raise BundleError(
            f"the bundle at {uri} has format {manifest.get('format')!r}, this version of "
            f"bloodcells reads format {FORMAT}; use the version that made it, or another bundle"
        )
    return manifest


def _damaged(uri: str, how: str) -> BundleError:
    return BundleError(f"the bundle at {uri} is damaged: {how}; fetch or make it again")


def _main() -> None:
    """Verify the bundle that the command line names, and print its manifest, or what is wrong."""
    try:
        answer = ModelBundle.load(sys.argv[1]).manifest()
    except BloodcellsError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    _main()
