"""A site profile: what differs between the training lab and another, in a small JSON file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Final, Literal, Self, get_args

from bloodcells import storage
from bloodcells.errors import ConfigurationError, NotFoundError
from bloodcells.imaging import Preprocess, Tone
from bloodcells.imaging.window import LARGEST_CROP

SITE_NAME: Final = "site.json"
FORMAT: Final = 1

AUTO: Final = "auto"
NONE: Final = "none"
"""What ``--site`` takes beside the URI of a profile."""

Standing = Literal["home", "elsewhere", "unknown"]
Network = Literal["home", "elsewhere"]


@dataclass(frozen=True, kw_only=True)
class SiteProfile:
    """How pictures of a lab are to be seen by a bundle, and how they compare with its own lab's.

    Attributes:
        bundle_digest: the bundle that it was made for; another bundle needs another profile.
        crop: factor of the bundle's crop: above 1 where cells fill more of the picture than at
            home.
        density: factor of optical densities: above 1 where the stain is fainter than at home.
        statistics: what the model's early layers take for the usual here, as
            ``models.early_norm.to_text`` writes it; ``None`` for what it is at home.
        network: which of the bundle's networks sees them; ``elsewhere`` needs a bundle that has
            one for other labs.
        temperature: factor of the bundle's temperature: above 1, elsewhere, where a model is surer
            than it is right.
        strange_above: limit of strangeness here, instead of the bundle's; ``None`` for that.
        standing: ``home``, ``elsewhere``, or ``unknown`` where there were too few pictures or the
            bundle does not know its home.
        distance: from home, in spreads of home pictures; ``None`` where unknown.
        threshold: the distance beyond which a store is from elsewhere; ``None`` where unknown.
        num_images: pictures that were looked at.
        measures: median of each ruler, here and at home, by the ruler's name.
    """

    bundle_digest: str
    crop: float = 1.0
    density: float = 1.0
    statistics: str | None = field(default=None, repr=False)
    network: Network = "home"
    temperature: float = 1.0
    strange_above: float | None = None
    standing: Standing = "unknown"
    distance: float | None = None
    threshold: float | None = None
    num_images: int = 0
    measures: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0.2 <= self.crop <= 5 or not 0.2 <= self.density <= 5:
            raise ConfigurationError(
                f"a site profile's crop and density must be 0.2 to 5, not {self.crop} and "
                f"{self.density}"
            )
        if self.network not in get_args(Network):
            raise ConfigurationError(
                f"a site profile's network must be home or elsewhere, not {self.network!r}"
            )
        if not 0 < self.temperature <= 20:
            raise ConfigurationError(
                f"a site profile's temperature must be above 0 and at most 20, not "
                f"{self.temperature}"
            )
        if self.standing != "unknown" and (self.distance is None or self.threshold is None):
            raise ConfigurationError(
                f"a site profile whose standing is {self.standing} needs a distance and a threshold"
            )

    @cached_property
    def digest(self) -> str:
        """``sha256:…`` over all that decides a score, and over nothing else."""
        acting = [
            FORMAT,
            self.bundle_digest,
            self.crop,
            self.density,
            self.temperature,
            self.strange_above,
            *([self.statistics] if self.statistics else []),
            *([self.network] if self.network != "home" else []),
        ]
        return f"sha256:{hashlib.sha256(json.dumps(acting).encode()).hexdigest()}"

    @property
    def changes_nothing(self) -> bool:
        """Whether scores are those without a profile."""
        return (
            self.crop == self.density == self.temperature == 1
            and self.strange_above is None
            and self.statistics is None
            and self.network == "home"
        )

    def acting_as(self, other: SiteProfile) -> SiteProfile:
        """Return what this profile says of a store, with what another does to its pictures."""
        return replace(
            self,
            crop=other.crop,
            density=other.density,
            statistics=other.statistics,
            network=other.network,
            temperature=other.temperature,
            strange_above=other.strange_above,
        )

    def seen_by(self, preprocess: Preprocess) -> Preprocess:
        """Return how a bundle of this preprocess is to see pictures of this lab."""
        if self.changes_nothing:
            return preprocess
        tone = preprocess.tone
        if self.density != 1:
            tone = replace(tone or Tone(white=255), density=self.density)
        return replace(preprocess, crop=min(LARGEST_CROP, preprocess.crop * self.crop), tone=tone)

    @property
    def sentence(self) -> str:
        """What a person should know, in one sentence or two."""
        if self.standing == "unknown":
            return (
                "Whether these pictures are like those the model learned from is not known: "
                f"{self.num_images} were looked at."
            )
        how_far = f"{self.distance:.1f} where {self.threshold:.1f} is the limit"
        if self.standing == "home":
            return f"These pictures look like those the model learned from (distance {how_far})."
        return (
            f"These pictures come from another lab than those the model learned from (distance "
            f"{how_far}): expect more errors than the model's card states, and have a sample "
            "checked by a person before any number is used."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON, with the digest and the sentence."""
        measures = {name: list(pair) for name, pair in self.measures.items()}
        return {
            "format": FORMAT,
            **asdict(replace(self, measures={})),
            "measures": measures,
            "digest": self.digest,
            "sentence": self.sentence,
        }

    def save(self, uri: str) -> None:
        """Write ``site.json`` into a folder."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
        storage.put(storage.join(uri, SITE_NAME), text.encode())

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Build from :meth:`to_dict`'s result, whatever else stands beside it.

        Raises:
            ValueError: it is of another format, or was changed since.
            KeyError: something is missing.
        """
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']} is not known to this version")
        later = {"statistics": None, "network": "home"}  # a profile of an earlier version has none
        own = {item.name: (later | dict(values))[item.name] for item in fields(cls)}
        own["measures"] = {name: (here, home) for name, (here, home) in own["measures"].items()}
        profile = cls(**own)
        if profile.digest != values["digest"]:
            raise ValueError("its content does not have the digest it claims")
        return profile

    @classmethod
    def load(cls, uri: str) -> Self:
        """Read a profile from its folder, or from the file itself.

        Raises:
            ConfigurationError: there is none, or it is damaged.
            StorageError: the place cannot be reached.
        """
        uri = storage.normalise(uri)
        path = uri if uri.endswith(".json") else storage.join(uri, SITE_NAME)
        try:
            profile = cls.of(json.loads(storage.read(path)))
        except NotFoundError as error:
            raise ConfigurationError(
                f"there is no site profile at {uri}: {path} is missing; make one with "
                "python -m jobs.site"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"{path} is not a site profile ({error}); make it anew with python -m jobs.site"
            ) from error
        return profile

    def require_made_for(self, bundle_digest: str, uri: str) -> None:
        """Refuse a bundle that the profile was not made for.

        Raises:
            ConfigurationError: it was made for another.
        """
        if self.bundle_digest != bundle_digest:
            raise ConfigurationError(
                f"the site profile {uri} was made for the bundle {self.bundle_digest}, not for "
                f"{bundle_digest}; make one for this bundle with python -m jobs.site"
            )


def network_at(site: SiteProfile | None) -> tuple[Network, str | None]:
    """Return all that tells the network that sees one site from that of another.

    Args:
        site: the profile; ``None`` for the bundle's own lab.
    """
    return (site.network, site.statistics) if site else ("home", None)
