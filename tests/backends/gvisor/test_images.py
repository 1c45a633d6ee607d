"""Image references: full form, invalid ones, and the allow list."""

import pytest

from backends_app.backends.gvisor import images
from backends_app.exceptions import InvalidRequest

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/a/b", "docker.io/a/b:latest"),
        ("team/tool", "docker.io/team/tool:latest"),
        ("localhost/tool", "localhost/tool:latest"),
        ("registry.example.org/team/tool:v1", "registry.example.org/team/tool:v1"),
        ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        (f"busybox:1@{DIGEST}", f"docker.io/library/busybox:1@{DIGEST}"),
    ],
)
def test_reference_is_completed(given: str, full: str):
    assert str(images.parse(given)) == full
    assert str(images.parse(full)) == full


NONE = [
    *("", " ", "-v/:/h", "--privileged", "a b", "a/../b", "/etc/passwd", "http://x/y", "x:"),
    *("x@sha256:1", "busybox:1\n", "A", "a//b", "a/b/", "x" * 300, "x:" + "y" * 200, "ü", "$(id)"),
    *("Foo/bar:1", "A/b", "LOCALHOST/x", "a" * 250, "a/" + "b" * 244, "registry.example.org/B"),
    *("a;b", ".", "..", "busybox@md5:0", "user:secret@registry.example.org/x", "x\0y"),
]


@pytest.mark.parametrize("given", NONE)
def test_invalid_reference_is_rejected(given: str):
    with pytest.raises(InvalidRequest) as raised:
        images.parse(given)
    assert raised.value.field == "image"


@pytest.mark.parametrize(
    ("pattern", "given", "allowed"),
    [
        ("docker.io/library/busybox", "busybox:1.36", True),
        ("docker.io/library/busybox", f"busybox@{DIGEST}", True),
        ("docker.io/library/busybox:1.36", "busybox:1.36", True),
        ("docker.io/library/busybox:1.36", f"busybox:1.36@{DIGEST}", True),
        ("docker.io/library/busybox:1.36", "busybox:1.37", False),
        ("docker.io/library/busybox:1.36", f"busybox@{DIGEST}", False),
        (f"docker.io/library/busybox@{DIGEST}", f"busybox@{DIGEST}", True),
        ("docker.io/library/*", "busybox", True),
        ("docker.io/library/*", "team/tool", False),
        ("docker.io/library/busybox", "busybox2", False),
        ("docker.io/library/busybox", "docker.io.example.org/library/busybox", False),
        ("registry.example.org/*", "registryXexample.org/x", False),
        ("localhost:5000/*", "localhost:50001/x", False),
    ],
)
def test_patterns_match_images(pattern: str, given: str, allowed: bool):
    assert images.pattern_error(pattern) is None
    assert images.is_allowed(images.parse(given), [pattern]) is allowed


@pytest.mark.parametrize(
    "pattern", ["*", "*/x", "*.example.org/x", "busybox", "library/busybox", 1]
)
def test_pattern_without_a_registry_is_rejected(pattern):
    assert images.pattern_error(pattern)
