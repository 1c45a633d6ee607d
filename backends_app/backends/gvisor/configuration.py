"""Check and convert the OPTIONS of the gVisor backend that name images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...exceptions import InvalidOption, InvalidRequest
from .. import options
from ..heap import heap_mb
from . import images

COMMANDS = {
    "python": ("python3", "{file}"),
    "node": ("node", "{file}"),
    "go": ("go", "run", "{file}"),
}
# Environment of a runtime, unless its image sets the same variables: unbuffered output, and the
# heap size, `{heap_mb}`.
ENVIRONMENTS: Mapping[str, Mapping[str, str]] = {
    "python": {"PYTHONUNBUFFERED": "1"},
    "node": {"NODE_OPTIONS": "--max-old-space-size={heap_mb}"},
    "go": {},
}
ABORTS = frozenset({"node"})  # runtimes that abort when their heap is full
FILES = {"python": "main.py", "node": "main.mjs", "go": "main.go"}


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeImage:
    """The image of a runtime, and how a file is run in it.

    `aborts` means that the runtime aborts when its heap is full.
    """

    image: images.Reference
    command: tuple[str, ...]
    file: str
    environment: Mapping[str, str]
    aborts: bool

    def environment_for(self, mem_mb: int) -> dict[str, str]:
        """Return the environment of a program limited to `mem_mb`."""
        heap = str(heap_mb(mem_mb))
        return {name: text.replace("{heap_mb}", heap) for name, text in self.environment.items()}


def runtime_images(runtimes: Mapping[str, object]) -> dict[str, RuntimeImage]:
    option = "runtimes"
    if not isinstance(runtimes, Mapping):
        raise InvalidOption(option, runtimes, "must be a dict of runtimes and images")
    found = {}
    for runtime, value in runtimes.items():
        entry = {"image": value} if isinstance(value, str) else value
        if runtime not in COMMANDS:
            raise InvalidOption(option, runtime, f"must be one of {', '.join(COMMANDS)}")
        if not isinstance(entry, Mapping) or not {"image"} <= {*entry} <= {"image", "command"}:
            raise InvalidOption(
                option, value, "must be an image, or a dict of 'image' and 'command'"
            )
        command = entry.get("command", COMMANDS[runtime])
        if (
            isinstance(command, str)
            or not isinstance(command, Sequence)
            or not all(isinstance(part, str) for part in command)
            or not any("{file}" in part for part in command)
        ):
            raise InvalidOption(option, command, "must be a list of strings, with '{file}' in it")
        image = reference(option, entry["image"])
        found[runtime] = RuntimeImage(
            image=image,
            command=tuple(command),
            file=FILES[runtime],
            environment=ENVIRONMENTS[runtime],
            aborts=runtime in ABORTS,
        )
    return found


def pool_sizes(pool: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(pool, Mapping):
        raise InvalidOption("pool", pool, "must be a dict of images and numbers")
    return {
        str(reference("pool", image)): options.integer("pool", size, least=0)
        for image, size in pool.items()
    }


def reference(option: str, image: object) -> images.Reference:
    try:
        return images.parse(options.text(option, image, "a reference to an image"))
    except InvalidRequest as error:
        raise InvalidOption(option, image, error.reason) from error


def patterns(option: str, value: Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidOption(option, value, "must be a list")
    for pattern in value:
        if problem := images.pattern_error(pattern):
            raise InvalidOption(option, pattern, problem)
    return tuple(value)
