"""Inspection of archives: only files, folders and links within limits are accepted."""

import gzip
import io
import os
import random
import subprocess
import tarfile
import tracemalloc
from contextlib import suppress

import pytest

from backends_app.backends.microvm import archive
from backends_app.backends.microvm.archive import inspect_archive
from backends_app.exceptions import InvalidRequest
from tests.backends.microvm.archives import entry, packed, tar, tar_gz

MB = 1024 * 1024


def refused(data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        inspect_archive(data)
    assert caught.value.field == "code_archive"
    return caught.value.reason


def test_files_and_folders_are_found():
    found = inspect_archive(
        tar_gz(
            entry("./", kind=tarfile.DIRTYPE),
            entry("lib/", kind=tarfile.DIRTYPE),
            entry("./main.py", "x"),
            entry("lib/a.py", "y"),
            entry("lib/" + "deep/" * 20 + "ü.py", "z"),
            entry("empty"),
        )
    )
    assert {"main.py", "lib/a.py", "empty"} <= found.files
    assert len(found.files) == 4


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_tar_formats_are_read(form: int):
    name = "a/" * 30 + "b" * 60
    assert inspect_archive(gzip.compress(tar(entry(name, "x"), form=form))).files == {name}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../x", "leads out"),
        ("a/../../x", "leads out"),
        ("a/../b", "leads out"),
        ("/etc/passwd", "leads out"),
        ("//x", "leads out"),
        ("..", "leads out"),
        ("a\nb", "control character or a backslash"),
        ("a\x1bb", "control character or a backslash"),
        ("..\\x", "control character or a backslash"),
        ("x" * 256, "too long"),
        ("x/" * 300 + "y", "too long"),
        ("x/" * 40 + "y", "too long"),
        (".", "no name"),
    ],
)
def test_path_out_of_the_archive_is_rejected(name: str, why: str):
    assert why in refused(tar_gz(entry(name, "x")))


def test_path_that_is_not_utf8_is_rejected():
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as one:
        info, data = entry("ü.py", "x")
        one.addfile(info, io.BytesIO(data))
    assert "not UTF-8" in refused(gzip.compress(made.getvalue()))


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CONTTYPE,
        b"Z",
    ],
)
def test_only_files_folders_and_links_are_accepted(kind: bytes):
    assert "not a file, a folder or a symbolic link" in refused(
        tar_gz(entry("main.py", "x"), entry("link", kind=kind, linkname="/etc/passwd"))
    )


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind=tarfile.SYMTYPE, linkname=target)


def test_writing_through_a_link_is_rejected():
    for target in ("/tmp", "../tmp", "b"):
        for entries in (
            [link("a", target), entry("a/x", "x")],
            [entry("a/x", "x"), link("a", target)],
            [link("a", target), link("a/x", "../b")],
        ):
            assert refused(tar_gz(entry("b/y", "y"), *entries))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("node_modules/.bin/tool", "../tool/cli.js"),
        ("node_modules/.bin/tool", "./nothing/that/is/there"),
        ("a", "b/c"),
        ("a", "."),
        ("a/b/c", "../.."),
        ("x" * 90, "y" * 200),
    ],
)
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_links_that_stay_inside_are_accepted(name: str, target: str, form: int):
    if form == tarfile.USTAR_FORMAT and len(target) > 100:
        return
    made = tar(entry("main.py", "x"), link(name, target), form=form)
    assert inspect_archive(gzip.compress(made)).files == {"main.py"}


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("a", "/etc/passwd"),
        ("a", ".."),
        ("a", "../x"),
        ("a/b", "../../x"),
        ("a/b", "c/../../../x"),
        ("a/b/c", "d/../x"),  # if d is a link, this leads elsewhere
        ("a", "b\nc"),
        ("a", "b\\c"),
        ("a", "x/" * 400),
        ("a", ""),
    ],
)
def test_links_that_lead_outside_are_rejected(name: str, target: str):
    assert refused(tar_gz(entry("main.py", "x"), link(name, target)))


def test_link_is_rejected_as_an_entry_point():
    found = inspect_archive(tar_gz(entry("x.py", "x"), link("main.py", "x.py")))
    with pytest.raises(InvalidRequest, match=r"Has no main\.py"):
        found.entry(("main.py",))


def test_macos_resource_files_are_skipped():
    beside = b"\0\5\x16\7" + bytes(200)
    found = inspect_archive(
        tar_gz(
            entry("._main.py", beside),
            entry("main.py", "x"),
            entry("lib/._a.py", beside),
            entry("lib/._own", "mine"),
            entry("lib/._", "x"),
        )
    )
    assert found.files == {"main.py", "lib/._own", "lib/._"}


@pytest.mark.parametrize("size", [10_000, 1_000_000, 30_000_000])
def test_ignored_values_of_any_size_are_skipped_and_not_held(size: int):
    long = record("LIBARCHIVE.xattr.com.apple.ResourceFork", "A" * size)
    data = gzip.compress(header(b"x", record("path", "main.py") + long) + LAST, compresslevel=1)
    tracemalloc.start()
    try:
        assert inspect_archive(data).files == {"main.py"}
        assert tracemalloc.get_traced_memory()[1] < 2 * MB
    finally:
        tracemalloc.stop()


def test_ignored_values_count_as_unpacked_bytes():
    long = header(b"x", record("SCHILY.xattr.x", "A" * 40_000_000))
    entries = [tar(entry(f"{n}.py", "x"))[:1024] for n in range(3)]
    data = b"".join(long + one for one in entries) + bytes(1024)
    assert "Unpacks to more than" in refused(gzip.compress(data, compresslevel=1))


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6755])
def test_setuid_is_rejected(mode: int):
    assert "setuid" in refused(tar_gz(entry("x", "x", mode=mode)))


@pytest.mark.parametrize(
    "names",
    [
        ("a", "a"),
        ("a", "./a"),
        ("a", "A"),
        ("a/b", "a//b"),
        ("a", "a/b"),
        ("a/b", "a"),
        ("straße", "STRASSE"),
        ("é", "e\u0301"),
    ],
)
def test_colliding_entries_are_rejected(names: tuple[str, str]):
    assert "more than once" in refused(tar_gz(*(entry(name, "x") for name in names)))


def test_folder_may_be_listed_twice():
    folder = ("lib/", {"kind": tarfile.DIRTYPE})
    entries = [entry(folder[0], **folder[1]) for _ in range(2)]
    assert inspect_archive(tar_gz(*entries, entry("lib/x", "x"))).files == {"lib/x"}


def bomb(size: int) -> bytes:
    """Return a file of zeros, compressed to a thousandth."""
    made = io.BytesIO()
    with gzip.GzipFile(fileobj=made, mode="wb", compresslevel=1) as out:
        info, _ = entry("main.py")
        info.size = size
        out.write(info.tobuf())
        for _ in range(size // MB):
            out.write(bytes(MB))
    return made.getvalue()


def test_oversized_archive_is_rejected_while_it_is_read():
    data = bomb(1024 * MB)
    tracemalloc.start()
    try:
        assert "Unpacks to more than" in refused(data)
        assert tracemalloc.get_traced_memory()[1] < 8 * MB
    finally:
        tracemalloc.stop()


def test_headers_of_any_size_are_bounded():
    """A long name or a pax record must not be read into memory as a whole."""
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        info = tarfile.TarInfo("long")
        info.type, info.size = kind, 900 * MB
        data = gzip.compress(info.tobuf() + b"a" * (80 * MB), compresslevel=1)
        assert refused(data)


def test_excessive_number_of_entries_is_rejected():
    data = gzip.compress(
        b"".join(entry(f"f{number}")[0].tobuf() for number in range(20_000)), compresslevel=1
    )
    assert f"more than {archive.MAX_ENTRIES:,} entries" in refused(data)


def test_entry_shorter_than_its_size_is_rejected():
    info, _ = entry("main.py")
    info.size = 10 * MB
    assert "unexpected end of data" in refused(gzip.compress(info.tobuf() + b"x" * 512))


@pytest.mark.parametrize(
    "data", [b"", b"junk", b"\x1f\x8b", gzip.compress(b"", mtime=0), bytes(1024)]
)
def test_data_that_is_not_an_archive_is_rejected(data: bytes):
    assert refused(data)


def test_archive_without_files_is_rejected():
    assert "no file" in refused(tar_gz(entry("lib/", kind=tarfile.DIRTYPE)))


def test_truncated_archive_is_rejected():
    whole = packed({"main.py": os.urandom(3000), "b": os.urandom(2000)})
    for length in range(0, len(whole), 37):
        assert refused(whole[:length])


def test_truncated_tar_is_rejected():
    whole = tar(entry("main.py", b"x" * 2000), entry("b", b"y" * 2000))
    ends = len(whole.rstrip(b"\0"))
    for length in range(100, ends, 171):
        if length != 512 * 5:  # the end of an archive of the first file alone
            assert refused(gzip.compress(whole[:length])), length


def test_unknown_data_is_rejected():
    first = tar(entry("main.py", "x"))[:1024]
    assert "contains an invalid numeric field" in refused(gzip.compress(first + b"\xff" * 1024))
    behind = gzip.compress(first + bytes(1024) + b"second" + bytes(506))
    assert "data after the end of the archive" in refused(behind)


def header(kind: bytes, body: bytes, size: int | None = None) -> bytes:
    """Return a header that describes the next one."""
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, len(body) if size is None else size
    return info.tobuf() + body + bytes(-len(body) % 512)


def record(key: str, value: str) -> bytes:
    rest = f" {key}={value}\n".encode()
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


LAST = tar(entry("main.py", "x"))


@pytest.mark.parametrize(
    "before",
    [
        header(b"x", b"1" * 200_000),
        header(b"x", b"1" * 8000),
        header(b"x", record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0")),
        header(b"x", record("hdrcharset", "BINARY")),
        header(b"x", b"".join(record(f"key{number}", "") for number in range(400))),
        header(b"x", b"0 path=x\n"),
        header(b"x", b"9999 path=x\n"),
        header(b"x", b"10 path=xyz"),
        header(b"x", record("size", "-1")),
        header(b"x", record("size", "9" * 30)),
        header(b"x", record("path", "../x")),
        header(b"x", record("path", "x" * 9000)),
        header(b"x", record("comment", "") * 200),
        header(b"x", record("c" * 600, "")),
        header(b"x", record("linkpath", "x")),
        header(b"g", record("linkpath", "x")),
        header(b"x", b"20 comment=x\n"),
        header(b"x", b"12 comment=xy"),
        header(b"x", b"9 path=\xff\n"),
        header(b"g", record("path", "x")),
        header(b"g", record("size", "1")),
        header(b"L", b"x" * 70_000),
        header(b"L", b"../x\0"),
        header(b"K", b"x\0"),
        header(b"X", b"x\0"),
        header(b"S", b""),
        header(b"V", b""),
        header(b"x", record("comment", "")) * 2000,
        header(b"g", record("comment", "")) * 2000,
        header(b"L", b"x\0") * 2000,
    ],
    ids=lambda before: f"{before[156:157].decode()}-{before[512:540]!r}",
)
def test_unusable_headers_are_rejected_at_once(before: bytes):
    assert refused(gzip.compress(before + LAST))


def test_headers_written_by_tar_and_git_are_read():
    comment = header(b"g", record("comment", "0123456789abcdef"))
    times = header(b"x", record("mtime", "1.5") + record("SCHILY.xattr.user.a", "b"))
    named = header(b"x", record("path", "a/ü.py") + record("size", "3"))
    found = inspect_archive(gzip.compress(comment + times + named + tar(entry("x", "abc"))))
    assert found.files == {"a/ü.py"}
    assert inspect_archive(gzip.compress(header(b"L", b"a" * 200 + b"\0") + LAST)).files == {
        "a" * 200
    }


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7"])
def test_archives_of_the_tar_program_are_read(tmp_path, form: str):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a.py").write_text("a" * 5000)
    (tmp_path / "main.py").write_text("m")
    packed = subprocess.run(
        ["tar", "-cz", f"--format={form}", "-C", tmp_path, "."], capture_output=True, check=True
    )
    assert inspect_archive(packed.stdout).files == {"main.py", "lib/a.py"}


def test_changed_byte_is_rejected():
    whole = bytearray(packed({"main.py": os.urandom(5000)}))
    for place in range(40, len(whole), 397):
        changed = whole.copy()
        changed[place] ^= 0x55
        assert refused(bytes(changed))


def test_arbitrary_bytes_raise_no_other_error():
    """Any change of an archive raises only `InvalidRequest`."""
    chance = random.Random(7)
    whole = bytearray(tar(entry("main.py", b"x" * 700), entry("a" * 150, "y"), entry("lib/b", "z")))
    for _ in range(300):
        changed = whole.copy()
        for _ in range(chance.randrange(1, 6)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        with suppress(InvalidRequest):
            inspect_archive(gzip.compress(bytes(changed)))


@pytest.mark.parametrize(
    ("files", "entries", "manifest", "found"),
    [
        ({"main.py": "", "index.js": ""}, ("main.py",), None, "main.py"),
        ({"index.mjs": ""}, ("index.js", "index.mjs"), None, "index.mjs"),
        ({"index.mjs": "", "index.js": ""}, ("index.js", "index.mjs"), None, "index.js"),
        ({"a/b.js": "", "package.json": '{"main": "./a/b.js"}'}, ("x",), "package.json", "a/b.js"),
        (
            {"a/index.js": "", "package.json": '{"main": "a/"}'},
            ("x",),
            "package.json",
            "a/index.js",
        ),
        ({"a/b.js": "", "package.json": '{"main": "a/b"}'}, ("x",), "package.json", "a/b.js"),
        ({"index.js": "", "package.json": "no JSON"}, ("index.js",), "package.json", "index.js"),
        ({"index.js": "", "package.json": "[1]"}, ("index.js",), "package.json", "index.js"),
        (
            {"index.js": "", "package.json": '{"main": 1}'},
            ("index.js",),
            "package.json",
            "index.js",
        ),
    ],
)
def test_entry_point_is_selected(files, entries, manifest, found):
    assert inspect_archive(packed(files), manifest).entry(entries) == found


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a/main.py": ""}, "Has no main.py at the top level"),
        ({"x": "", "package.json": '{"main": "../../etc/passwd"}'}, "is not among its files"),
    ],
)
def test_archive_without_an_entry_point_is_rejected(files, said):
    with pytest.raises(InvalidRequest, match=said):
        inspect_archive(packed(files), "package.json").entry(("main.py",))
