"""What stands around the processes of a launcher: how a backend says it, or requires it."""

from collections.abc import Mapping

from ..confinement.client import Launcher, LaunchError
from ..exceptions import BackendUnavailable


def standing(launcher: Launcher, *, what: str, required: bool) -> Mapping[str, str]:
    """Each wall with what it is made of, or with why it is missing.

    Raises `BackendUnavailable` where one is missing that is `required`, and where `what` is to run
    cannot be run at all.
    """
    try:
        in_force, missing = launcher.walls
    except LaunchError as error:
        raise BackendUnavailable(f"{what} could not be run: {error}") from error
    if missing and required:
        said = "; ".join(f"{wall}: {reason}" for wall, reason in missing.items())
        raise BackendUnavailable(f"walls are missing and required: {said}")
    return {**in_force, **{wall: f"missing: {reason}" for wall, reason in missing.items()}}
