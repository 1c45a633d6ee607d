"""Nodes: the hosts that run workloads, the backends they serve, and whether they are alive.

A node is a runtime folder, so usually a host. Each process on it that runs workloads sends
heartbeats for the backends that it serves. A node without new heartbeats for a while, measured by
the observer's monotonic clock, is considered dead. Neither side's wall clock matters.
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

from ..backends.base import Health
from ..models import NodeBackend, Workload
from ..registry import BackendInfo
from ..workloads import Status
from .slots import unusable

FORGET_FACTOR = 10  # times `lost_after_s`: how long dead backends are remembered

NodeBackendKey: TypeAlias = tuple[str, str]
"""The id of a node, and the name of a backend on it."""


@functools.cache
def node_id(folder: Path) -> str:
    """Return the id of the node of this runtime folder; a new folder is a new node.

    Raise `HostFault` when the folder is unusable.
    """
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
        os.link(draft, file)  # atomic: the first process wins
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return _read(file)


def _read(file: Path) -> str:
    return file.read_text()[:32]


def node_name() -> str:
    """Return the name of this host."""
    return socket.gethostname()


def heartbeat(node: str, backends: Iterable[BackendInfo], started_at: datetime) -> None:
    """Record that this node is alive, and the health of the backends that it serves."""
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
        row = NodeBackend.objects.filter(node_id=node, name=info.name)
        if not row.update(**state, beats=F("beats") + 1):
            NodeBackend.objects.bulk_create(
                [NodeBackend(node_id=node, name=info.name, started_at=started_at, **state)],
                ignore_conflicts=True,  # another process of this node was first
            )


def deregister(node: str, names: Iterable[str]) -> None:
    """Remove these backends of this node, which no longer serves them."""
    NodeBackend.objects.filter(node_id=node, name__in=list(names)).delete()


@dataclass(slots=True)
class _Observation:
    """The last heartbeat seen of one backend on one node.

    `beats` changed at `changed_at` (monotonic). `trusted` is set once a heartbeat proved it alive.
    """

    beats: int | None
    changed_at: float
    trusted: bool


class FailureDetector:
    """Detects which nodes are alive, from the heartbeats that it observes itself.

    A backend seen for the first time counts as alive when its last heartbeat looks recent. This is
    the only use of wall clocks, until the next heartbeat. `clock` is injected so that tests need
    not wait.
    """

    def __init__(self, lost_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lost_after_s = lost_after_s
        self._clock = clock
        self._observations: dict[NodeBackendKey, _Observation] = {}
        self.alive: list[NodeBackend] = []

    def refresh(self) -> None:
        """Read the heartbeats, and delete the rows of nodes without one for too long."""
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
        """Return whether a backend on a node has had no heartbeat for `lost_after_s`.

        The time counts from the first observation by this process.
        """
        now = self._clock()
        observation = self._observations.setdefault(key, _Observation(None, now, trusted=False))
        return now - observation.changed_at >= self._lost_after_s

    def health(self, name: str) -> Health:
        """Return the health of a backend over all nodes that serve it."""
        rows = [row for row in self.alive if row.name == name]
        healthy = [row for row in rows if row.healthy]
        if healthy:
            return Health.ok(f"served by {_names(healthy)}", _common(healthy))
        if not rows:
            return Health.undetected("no node serves it; start a worker: manage.py run_worker")
        worst = next((row for row in rows if row.detected), rows[0])
        description = f"on {worst.node}: {worst.health_description}"
        if worst.detected:
            return Health.unhealthy(description, worst.attributes)
        return Health.undetected(description, worst.attributes)


def _names(rows: Iterable[NodeBackend]) -> str:
    return ", ".join(sorted({row.node for row in rows}))


def _common(rows: list[NodeBackend]) -> Mapping[str, str]:
    """Return the attributes that are equal on all nodes."""
    first, *others = (row.attributes or {} for row in rows)
    return {
        key: value
        for key, value in first.items()
        if all(other.get(key) == value for other in others)
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedBackend:
    """One backend on one node; `running` is the number of workloads running there now."""

    name: str
    detected: bool | None
    healthy: bool | None
    health_description: str
    attributes: Mapping[str, str]
    max_concurrency: int
    running: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One node as it reports itself; `load` is its host's load average over one minute."""

    id: str
    name: str
    backends: Sequence[ServedBackend]
    running: int
    load: float
    started_at: datetime
    seen_at: datetime


def summarize(alive: Iterable[NodeBackend]) -> list[Node]:
    """Group rows into nodes, by name, with the number of workloads running on each."""
    running: Counter[NodeBackendKey] = Counter(
        Workload.objects.filter(status=Status.RUNNING).values_list("node_id", "isolation_used")
    )
    by_node: dict[str, list[NodeBackend]] = {}
    for row in alive:
        by_node.setdefault(row.node_id, []).append(row)
    nodes = [
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
                    running=running[node_id, row.name],
                )
                for row in sorted(rows, key=lambda row: row.name)
            ],
            running=sum(running[node_id, row.name] for row in rows),
            load=round(max(rows, key=lambda row: row.seen_at).load, 2),
            started_at=min(row.started_at for row in rows),
            seen_at=max(row.seen_at for row in rows),
        )
        for node_id, rows in by_node.items()
    ]
    return sorted(nodes, key=lambda node: (node.name, node.id))
