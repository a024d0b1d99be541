"""The exception tree. Every message names the URI or flag concerned, and the remedy.

BloodcellsError
├── ConfigurationError        a flag or setting that cannot work
├── StorageError              bytes at a URI cannot be read or written
│   ├── NotFoundError         there is nothing at the URI
│   ├── AccessDeniedError     credentials are missing, wrong, or not enough
│   ├── StorageFullError      no space left where output goes
│   └── UnavailableError      timeouts, throttling, 5xx: still failing after all retries
├── StoreError                a store of images that cannot be used (empty, overlapping, unknown)
│   └── NoImagesError         a table that holds something else
├── ImageError                a fault of one image's data: ends as a quarantine row
├── DatasetError              a prepared dataset that is missing, damaged, or not one of ours
├── BundleError               a model bundle that is damaged or does not fit
├── ClusterError              Ray does not start
└── RunError                  a run folder that cannot be worked on
    ├── RunMismatchError      it was made with another bundle, site or settings
    ├── RunLockedError        another run holds its lease
    ├── QuarantineLimitError  more images were quarantined than ``--max-quarantine`` allows
    ├── RunSupersededError    the folder was started anew by another run meanwhile
    ├── ReviewConflictError   somebody reviewed the cell since it was looked at
    └── RunIncompleteError    work is left over; says what, and how to go on
"""

from __future__ import annotations

from typing import Any, Literal

Cause = Literal["throttled", "server", "connection"]
"""Why storage does not answer: it is asked too much, has an error of its own, or is not heard."""


class BloodcellsError(Exception):
    """Root of all errors that this project raises on purpose."""


class ConfigurationError(BloodcellsError, ValueError):
    """A flag or setting that cannot work."""


class StorageError(BloodcellsError):
    """Bytes at a URI cannot be read or written."""


class NotFoundError(StorageError):
    """There is nothing at the URI."""


class AccessDeniedError(StorageError):
    """Credentials are missing, wrong, or do not allow the operation."""


class StorageFullError(StorageError):
    """No space is left where output goes."""


class UnavailableError(StorageError):
    """Timeouts, throttling or server errors that outlasted every retry.

    Attributes:
        cause: which of them, for those who count.
    """

    def __init__(self, message: str, *, cause: Cause = "connection") -> None:
        super().__init__(message)
        self.cause: Cause = cause


class StoreError(BloodcellsError):
    """A store of images that cannot be used: empty, overlapping another, or of unknown kind."""


class NoImagesError(StoreError):
    """A table that holds no images: an error where the user named it, a remark where not."""


class ImageError(BloodcellsError):
    """A fault of one image's data; it ends as a quarantine row and never stops a run.

    Attributes:
        reason: one of ``records.REASONS``.
        detail: a sentence for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return ImageError, (self.reason, self.detail)


class DatasetError(BloodcellsError):
    """A prepared dataset that is missing, damaged, or was changed after it was written."""


class BundleError(BloodcellsError):
    """A model bundle that is damaged, incomplete, or does not fit what is asked of it."""


class ClusterError(BloodcellsError):
    """Ray does not start."""


class RunError(BloodcellsError):
    """A run folder that cannot be worked on."""


class RunMismatchError(RunError):
    """The run folder was made with another bundle, site or settings."""


class RunLockedError(RunError):
    """Another run holds the lease of this run folder."""


class RunSupersededError(RunError):
    """The run folder was started anew by another run while this one worked in it."""


class QuarantineLimitError(RunError):
    """More images were quarantined than the limit allows."""


class RunIncompleteError(RunError):
    """Some shards could not be scored; the message says which and how to go on."""


class ReviewConflictError(RunError):
    """Somebody reviewed a cell since the person looked at it.

    Attributes:
        current: the ``reviews.Review`` that stands; ``None`` where there is none.
    """

    def __init__(self, message: str, current: Any) -> None:
        super().__init__(message)
        self.current = current

    def __reduce__(self) -> tuple[type[ReviewConflictError], tuple[str, Any]]:
        return ReviewConflictError, (str(self), self.current)
