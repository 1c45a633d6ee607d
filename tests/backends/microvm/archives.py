"""Valid and hostile archives."""

import gzip
import io
import tarfile
from collections.abc import Mapping


def packed(files: Mapping[str, bytes | str], mode: int = 0o755) -> bytes:
    """Return a tar.gz of these files."""
    return tar_gz(*(entry(name, content, mode=mode) for name, content in files.items()))


def entry(
    name: str, content: bytes | str = b"", *, kind: bytes = tarfile.REGTYPE, **given
) -> tuple[tarfile.TarInfo, bytes]:
    """Return an entry; `given` are attributes of its TarInfo."""
    data = content.encode() if isinstance(content, str) else content
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for key, value in given.items():
        setattr(info, key, value)
    return info, data


def tar(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return made.getvalue()


def tar_gz(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    return gzip.compress(tar(*entries))
