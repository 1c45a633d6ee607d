"""The list of backends as bytes, made once for each state of the registry."""

import hashlib
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from rest_framework.renderers import JSONRenderer

from ..registry import Snapshot
from .serializers import BackendInfoSerializer


@dataclass(frozen=True, slots=True)
class Representation:
    """`data` is what the browsable API shows, `body` the JSON, `etag` the body's own."""

    data: Any
    body: bytes
    etag: str


_made: WeakKeyDictionary[Snapshot, Representation] = WeakKeyDictionary()


def backend_list(snapshot: Snapshot) -> Representation:
    """Equal states give equal bytes, and so equal ETags: in every process, after every restart."""
    made = _made.get(snapshot)
    if made is None:
        data = BackendInfoSerializer(snapshot.list(), many=True).data
        body = JSONRenderer().render(data)
        made = Representation(data, body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
        _made[snapshot] = made
    return made
