"""The user of a program, resolved by its image's own files, including hostile ones."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends_app.backends.gvisor.users import NOBODY, PASSWD, resolve_user

FILES = {
    "/etc/passwd": "app:x:10:20::/:\nroot:x:0:0\nshort:x:5\ntoor:x:0:9\napp:x:1:1\n",
    "/etc/group": "web:x:30:app\nwheel:x:0:\n",
}


@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        ("app", "10:20"),
        ("app:web", "10:30"),
        ("app:wheel", "10:65534"),
        ("10", "10:20"),
        ("10:web", "10:30"),
        ("11:12", "11:12"),
        ("11", "11:65534"),
        ("root", NOBODY),
        ("toor:web", NOBODY),
        ("short", NOBODY),
        ("", NOBODY),
        (":30", NOBODY),
        ("app:", "10:20"),
        ("-10", NOBODY),
    ],
)
def test_user_is_the_images(configured: str, expected: str):
    assert resolve_user(configured, lambda path: FILES[path]) == expected
    without = resolve_user(configured, lambda path: "")
    assert without.split(":")[0] in (configured.split(":")[0], "65534")


@given(st.text(alphabet="root:x01\n²", max_size=40), st.text(alphabet="root:x01\n²-", max_size=9))
def test_root_is_mapped_to_nobody_whatever_the_files_contain(text: str, configured: str):
    user = resolve_user(configured, lambda path: text)
    assert re.fullmatch(r"[1-9][0-9]{0,9}:[1-9][0-9]{0,9}", user)


def test_only_needed_files_are_read():
    asked: list[str] = []
    resolve_user("5:6", asked.append)
    assert asked == []
    resolve_user("5", lambda path: asked.append(path) or "")
    assert asked == [PASSWD]
