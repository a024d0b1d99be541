"""The site profile that an archive run goes on with, also where the endpoint has another since."""

from __future__ import annotations

from collections.abc import Mapping

from bloodcells.errors import ConfigurationError
from bloodcells.runs import Run
from bloodcells.sites import AUTO, NONE, SiteProfile
from serve.settings import read_sites


def site_of(
    found: Run | None, name: str, sites: Mapping[str, str], bundle_digest: str
) -> SiteProfile | None:
    """Return the profile that a request names.

    Args:
        found: the request's run, where it was begun: the profile that it was begun with is its own.
        name: ``auto``, ``none``, or the name of a profile.
        sites: the endpoint's profiles, name to URI.
        bundle_digest: of the run's model.

    Returns:
        The profile; ``None`` for ``auto`` and ``none``.

    Raises:
        ConfigurationError: there is no such profile for this model.
        RunError: the run's record is damaged.
        StorageError: the profile's place cannot be reached.
    """
    if name in (AUTO, NONE):
        return None
    if found is not None and found.site is not None and found.site.get("uri") == name:
        return found.profile
    if name not in sites:
        raise ConfigurationError(
            f"the endpoint has no site profile {name} any more; have it put back among its sites "
            "and resume the run, or start a new one"
        )
    return read_sites({name: sites[name]}, bundle_digest)[name]
