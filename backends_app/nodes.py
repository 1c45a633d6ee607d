"""Nodes: the hosts that run workloads, what each serves, and whether it is still there.

A node is a host, or what passes for one: a runtime folder. Each process on it that runs workloads
says again and again which backends it serves; who has heard nothing new for a while, by a clock
that nobody sets, takes the node for dead. What the time is there, or here, does not matter.
"""

import functools
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from django.db.models import F

from .backends.base import Health
from .models import NodeBackend, Workload
from .registry import BackendInfo
from .slots import unusable
from .workloads import Status

FORGET_FACTOR = 10  # for how long the dead are remembered

NodeBackendKey: TypeAlias = tuple[str, str]
"""The id of a node, and the name of a backend on it."""


@functools.cache
def node_id(folder: Path) -> str:
    """The id of the node that this runtime folder makes; a new folder is a new node."""
    try:
        return _node_id(folder)
    except OSError as error:
        raise unusable(folder, error) from error


def _node_id(folder: Path) -> str:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / "node"
    try:
        return _read(file)
    except FileNotFoundError:
        pass
    draft = folder / f"node.{secrets.token_hex(8)}"
    draft.write_text(secrets.token_hex(16))
    try:
        os.link(draft, file)  # whole, or not at all; the first one stands
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return _read(file)


def _read(file: Path) -> str:
    return file.read_text()[:32]


def node_name() -> str:
    return socket.gethostname()


def heartbeat(node: str, backends: Iterable[BackendInfo], started_at: datetime) -> None:
    """Say that this node serves these backends, and how they are."""
    now = datetime.now(UTC)
    for info in backends:
        state = {
            "node": node_name(),
            "detected": info.detected,
            "healthy": info.healthy,
            "health_description": info.health_description,
            "attributes": dict(info.attributes),
            "max_concurrency": info.capabilities.max_concurrency,
            "load": os.getloadavg()[0],
            "seen_at": now,
        }
        mine = NodeBackend.objects.filter(node_id=node, name=info.name)
        if not mine.update(**state, beats=F("beats") + 1):
            NodeBackend.objects.bulk_create(
                [NodeBackend(node_id=node, name=info.name, started_at=started_at, **state)],
                ignore_conflicts=True,  # another process of this node was first
            )


def deregister(node: str, names: Iterable[str]) -> None:
    """This node serves these backends no longer."""
    NodeBackend.objects.filter(node_id=node, name__in=list(names)).delete()


@dataclass(slots=True)
class _Observation:
    """What was heard of one backend on one node; `believed` once there was reason to."""

    beats: int | None
    changed_at: float
    trusted: bool


class FailureDetector:
    """Judges who is alive, by what it has seen itself.

    What it sees for the first time is believed to be alive when its last beat looks recent: the one
    thing for which a wrong clock matters, until the next beat. `clock` is a parameter so that tests
    need no time.
    """

    def __init__(self, lost_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lost_after_s = lost_after_s
        self._clock = clock
        self._observations: dict[NodeBackendKey, _Observation] = {}
        self.alive: list[NodeBackend] = []

    def refresh(self) -> None:
        """Read what the nodes say, and forget those that have been silent for too long."""
        now, rows = self._clock(), list(NodeBackend.objects.all())
        alive: list[NodeBackend] = []
        for row in rows:
            key = (row.node_id, row.name)
            observation = self._observations.get(key)
            if observation is None:
                recent = abs((datetime.now(UTC) - row.seen_at).total_seconds()) < self._lost_after_s
                observation = self._observations[key] = _Observation(row.beats, now, trusted=recent)
            elif row.beats != observation.beats:
                observation = self._observations[key] = _Observation(row.beats, now, trusted=True)
            if now - observation.changed_at >= self._lost_after_s:
                NodeBackend.objects.filter(pk=row.pk, beats=row.beats).delete()
            elif observation.trusted:
                alive.append(row)
        self.alive = alive
        self._observations = {
            key: observation
            for key, observation in self._observations.items()
            if now - observation.changed_at < FORGET_FACTOR * self._lost_after_s
        }

    def is_lost(self, key: NodeBackendKey) -> bool:
        """Has nobody heard anything new of it for too long? Not before that has been watched."""
        now = self._clock()
        observation = self._observations.setdefault(key, _Observation(None, now, trusted=False))
        return now - observation.changed_at >= self._lost_after_s

    def health(self, name: str) -> Health:
        """How a backend is, taken over all nodes that serve it."""
        rows = [row for row in self.alive if row.name == name]
        healthy = [row for row in rows if row.healthy]
        if healthy:
            return Health.ok(f"served by {_names(healthy)}", _common(healthy))
        if not rows:
            return Health.undetected("no node serves it; start a worker: manage.py run_worker")
        worst = next((row for row in rows if row.detected), rows[0])
        said = f"on {worst.node}: {worst.health_description}"
        if worst.detected:
            return Health.unhealthy(said, worst.attributes)
        return Health.undetected(said, worst.attributes)


def _names(rows: Iterable[NodeBackend]) -> str:
    return ", ".join(sorted({row.node for row in rows}))


def _common(rows: list[NodeBackend]) -> Mapping[str, str]:
    """The attributes on which all agree."""
    first, *others = (row.attributes or {} for row in rows)
    return {
        key: value
        for key, value in first.items()
        if all(other.get(key) == value for other in others)
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedBackend:
    """One backend on one node; `running` counts the workloads that run there now."""

    name: str
    detected: bool | None
    healthy: bool | None
    health_description: str
    attributes: Mapping[str, str]
    max_concurrency: int
    running: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One node by its own account; `load` is its host's average over one minute."""

    id: str
    name: str
    backends: Sequence[ServedBackend]
    running: int
    load: float
    started_at: datetime
    seen_at: datetime


def summarize(alive: Iterable[NodeBackend]) -> list[Node]:
    """The nodes of these rows, by name."""
    busy: Counter[NodeBackendKey] = Counter(
        Workload.objects.filter(status=Status.RUNNING).values_list("node_id", "isolation_used")
    )
    by_node: dict[str, list[NodeBackend]] = {}
    for row in alive:
        by_node.setdefault(row.node_id, []).append(row)
    found = [
        Node(
            id=node_id,
            name=rows[0].node,
            backends=[
                ServedBackend(
                    name=row.name,
                    detected=row.detected,
                    healthy=row.healthy,
                    health_description=row.health_description,
                    attributes=row.attributes or {},
                    max_concurrency=row.max_concurrency,
                    running=busy[node_id, row.name],
                )
                for row in sorted(rows, key=lambda row: row.name)
            ],
            running=sum(busy[node_id, row.name] for row in rows),
            load=round(max(rows, key=lambda row: row.seen_at).load, 2),
            started_at=min(row.started_at for row in rows),
            seen_at=max(row.seen_at for row in rows),
        )
        for node_id, rows in by_node.items()
    ]
    return sorted(found, key=lambda node: (node.name, node.id))
