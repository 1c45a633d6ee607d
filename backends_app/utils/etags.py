"""Entity tags."""

import hashlib


def strong_etag(body: bytes) -> str:
    """Return the strong ETag of a body: equal bytes have equal tags, in every process."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'
