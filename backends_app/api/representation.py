"""Render the list of backends once for each state of the registry."""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from rest_framework.renderers import JSONRenderer

from ..registry import Snapshot
from ..utils.etags import strong_etag
from .serializers.backends import BackendInfoSerializer


@dataclass(frozen=True, slots=True)
class Representation:
    """The rendered list: `data` for the browsable API, `body` the JSON, `etag` of the body."""

    data: Any
    body: bytes
    etag: str


_cache: WeakKeyDictionary[Snapshot, Representation] = WeakKeyDictionary()


def backend_list(snapshot: Snapshot) -> Representation:
    """Return the rendered list of a snapshot.

    Equal states give equal bytes and equal ETags, in every process and after every restart.
    """
    rendered = _cache.get(snapshot)
    if rendered is None:
        data = BackendInfoSerializer(snapshot.list(), many=True).data
        body = JSONRenderer().render(data)
        rendered = _cache[snapshot] = Representation(data, body, strong_etag(body))
    return rendered
