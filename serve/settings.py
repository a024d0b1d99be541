"""What an operator decides about the endpoint: the arguments of ``serve/config.yaml``.

Every field has a default that is safe on one machine. Knows nothing of Ray.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bloodcells import storage
from bloodcells.errors import ConfigurationError
from bloodcells.sites import AUTO, NONE, SiteProfile

MIB = 2**20


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Frozen):
    """Bounds of one request and of the queue; beyond each there is an answer of its own.

    Attributes:
        image_bytes: most bytes of one encoded image (413 ``image_too_large``).
        request_bytes: most bytes of one body of ``/v1/classify`` (413 ``body_too_large``).
        images_per_request: most images in one multipart body (413 ``too_many_images``).
        explained_images: most images in a request with ``explain=true``.
        body_seconds: longest that a body may take to arrive (408 ``body_too_slow``).
        queued_images: most images that wait in a replica (503 ``queue_full`` beyond it).
        upload_bytes: most bytes of an uploaded archive (413 ``body_too_large``).
        upload_seconds: longest that an upload may take (408 ``body_too_slow``).
        uploads_at_once: most uploads that a replica takes at a time (503 ``too_many_uploads``).
        open_runs: most archive runs that are not finished (429 ``too_many_runs``).
    """

    image_bytes: int = Field(default=20 * MIB, ge=1)
    request_bytes: int = Field(default=64 * MIB, ge=1)
    images_per_request: int = Field(default=256, ge=1)
    explained_images: int = Field(default=16, ge=1)
    body_seconds: float = Field(default=30.0, gt=0)
    queued_images: int = Field(default=1024, ge=1)
    upload_bytes: int = Field(default=512 * MIB, ge=1)
    upload_seconds: float = Field(default=600.0, gt=0)
    uploads_at_once: int = Field(default=4, ge=1)
    open_runs: int = Field(default=64, ge=1)


class Scale(_Frozen):
    """Bounds between which replicas follow the load, and what each of them books.

    Attributes:
        min_replicas, max_replicas: the bounds. Archive scorers may go down to 0.
        num_cpus, num_gpus: what one replica books of its node, in Ray's units.
        upscale_delay_s: seconds of more load before there is another replica.
        downscale_delay_s: seconds of less load before there is one fewer.
    """

    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=2, ge=1)
    num_cpus: float = Field(default=0.5, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)
    upscale_delay_s: float = Field(default=2.0, ge=0)
    downscale_delay_s: float = Field(default=120.0, ge=0)

    @model_validator(mode="after")
    def _in_order(self) -> Scale:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}"
            )
        return self


class ServeSettings(_Frozen):
    """Everything that the application is started with.

    Attributes:
        bundle: URI of the model bundle, may be pinned with ``@sha256:…``; empty for the shipped.
        root: folder, local or ``s3://``, in which archive runs and uploads are kept. It must be
            the same for every node, or runs do not survive their node.
        read: URI prefixes from which archives may be scored, besides uploads.
        write: URI prefixes below which run folders may be written, besides ``root``.
        sites: site profiles that requests may name, as jobs.site made them: name to URI.
        tokens_file: file with the tokens (see ``doors``); empty reads ``BLOODCELLS_TOKENS``.
        secure_cookies: whether the page's cookie is sent over https only. Turn off for plain
            http on loopback alone.
        origins: origins from which the page is used, such as ``https://cells.lab.example``, where a
            proxy hides the host from the endpoint.
        limits: see :class:`Limits`.
        classify: replicas that answer single cells.
        archives: replicas that score archives.
    """

    bundle: str = ""
    root: str = "serve-data"
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    sites: dict[str, str] = {}
    tokens_file: str = ""
    secure_cookies: bool = True
    origins: tuple[str, ...] = ()
    limits: Limits = Limits()
    classify: Scale = Scale()
    archives: Scale = Scale(min_replicas=0, num_cpus=0.4)

    @property
    def root_uri(self) -> str:
        """``root``, normalised."""
        return storage.normalise(self.root)


def read_sites(sites: Mapping[str, str], bundle_digest: str) -> dict[str, SiteProfile]:
    """Read the site profiles that requests may name.

    Args:
        sites: name to URI.
        bundle_digest: of the model that they must have been made for.

    Raises:
        ConfigurationError: a name is taken already, or there is no profile for this model.
        StorageError: a place cannot be reached.
    """
    found: dict[str, SiteProfile] = {}
    for name, uri in sites.items():
        if name in (AUTO, NONE):
            raise ConfigurationError(f"sites: {name} has a meaning of its own; call it otherwise")
        found[name] = SiteProfile.load(uri)
        found[name].require_made_for(bundle_digest, uri)
    return found
