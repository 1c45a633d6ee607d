"""What stands around the processes of a launcher: how a backend says it, or requires it."""

from collections.abc import Mapping

from ..confinement.client import Launcher, LaunchError
from ..exceptions import BackendUnavailable


def describe_layers(launcher: Launcher, *, what: str, required: bool) -> Mapping[str, str]:
    """Each wall with what it is made of, or with why it is missing.

    Raises `BackendUnavailable` where one is missing that is `required`, and where `what` is to run
    cannot be run at all.
    """
    try:
        active, missing = launcher.layers
    except LaunchError as error:
        raise BackendUnavailable(f"{what} could not be run: {error}") from error
    if missing and required:
        said = "; ".join(f"{wall}: {reason}" for wall, reason in missing.items())
        raise BackendUnavailable(f"walls are missing and required: {said}")
    return {**active, **{wall: f"missing: {reason}" for wall, reason in missing.items()}}
