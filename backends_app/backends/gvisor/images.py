"""Parse and normalise image references as Docker does, and match them against an allow list."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ...exceptions import InvalidRequest
from ...utils.text import short_repr

MAX_CHARS = 255
DEFAULT_REGISTRY, DEFAULT_FOLDER, DEFAULT_TAG = "docker.io", "library", "latest"

# The grammar of https://github.com/distribution/reference, with its names.
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_REFERENCE = re.compile(
    rf"(?:(?P<domain>{_DOMAIN})/)?(?P<path>{_PATH})"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_PATTERN = re.compile(rf"(?P<domain>{_DOMAIN})/(?P<rest>[a-z0-9._/:@*A-Z-]+)")


@dataclass(frozen=True, slots=True)
class Reference:
    """A full image reference in Docker's notation: `docker.io/library/busybox:latest`."""

    domain: str
    path: str
    tag: str | None
    digest: str | None

    @property
    def repository(self) -> str:
        return f"{self.domain}/{self.path}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"


def parse(text: str) -> Reference:
    """Return the full reference, or raise `InvalidRequest` if the text is not a reference."""
    found = _REFERENCE.fullmatch(text) if len(text) <= MAX_CHARS else None
    if found is None:
        raise InvalidRequest(
            "image",
            f"{short_repr(text)} is not an image reference, such as busybox:1.36 or "
            "registry.example.org/team/tool@sha256:….",
        )
    domain, path, tag, digest = found.group("domain", "path", "tag", "digest")
    if domain is not None and not _is_host(domain):
        domain, path = None, f"{domain}/{path}"
        if not re.fullmatch(_PATH, path):
            raise InvalidRequest(
                "image",
                f"{short_repr(text)} has no name, or a name that is not in lower case.",
            )
    if domain in (None, "index.docker.io"):
        domain = DEFAULT_REGISTRY
    if domain == DEFAULT_REGISTRY and "/" not in path:
        path = f"{DEFAULT_FOLDER}/{path}"
    reference = Reference(domain, path, tag or (None if digest else DEFAULT_TAG), digest)
    if len(reference.repository) > MAX_CHARS:
        raise InvalidRequest("image", f"Its full name is longer than {MAX_CHARS} characters.")
    return reference


def pattern_error(pattern: object) -> str | None:
    """Return what is wrong with an entry of the allow list, which must name its registry."""
    found = _PATTERN.fullmatch(pattern) if isinstance(pattern, str) else None
    if found is None or not _is_host(found["domain"]):
        return "must be a registry, / and a path, in which * matches anything"
    return None


def is_allowed(reference: Reference, patterns: Iterable[str]) -> bool:
    """Return whether a pattern matches the reference, with or without its tag and digest."""
    names = {str(reference), reference.repository}
    if reference.tag:
        names.add(f"{reference.repository}:{reference.tag}")
    return any(
        re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name)
        for pattern in patterns
        for name in names
    )


def _is_host(domain: str) -> bool:
    """Return whether the part before the first slash is a host, by Docker's rule."""
    return "." in domain or ":" in domain or domain == "localhost"
