"""Report or require the sandbox layers around the processes of a launcher."""

from collections.abc import Mapping

from ..exceptions import BackendUnavailable
from ..sandbox.client import Launcher, LaunchError


def describe_layers(launcher: Launcher, *, what: str, required: bool) -> Mapping[str, str]:
    """Return each sandbox layer with its basis, or with the reason why it is missing.

    Raise `BackendUnavailable` if one is missing and `required`, or if the program named by `what`
    cannot be run at all.
    """
    try:
        active, missing = launcher.layers
    except LaunchError as error:
        raise BackendUnavailable(f"{what} could not be run: {error}") from error
    if missing and required:
        reasons = "; ".join(f"{layer}: {reason}" for layer, reason in missing.items())
        raise BackendUnavailable(f"required sandbox layers are missing: {reasons}")
    return {**active, **{layer: f"missing: {reason}" for layer, reason in missing.items()}}
