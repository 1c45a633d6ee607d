"""Create submissions and recorded workloads in any status for tests."""

from datetime import UTC, datetime
from typing import Any

from backends_app.execution.lifecycle import Submission
from backends_app.models import ENDED, Source, Workload
from backends_app.workloads import Status, WorkloadSpec

CODE = "export default (x) => x"


def node(**given: Any) -> WorkloadSpec:
    return WorkloadSpec(**{"runtime": "node", "code": CODE, **given})


def submission(
    *, owner: Any = None, key: str | None = None, rerun_if_lost: bool = False, **given: Any
):
    """Return a submission of a node workload."""
    owner_id = None if owner is None else owner.pk
    return Submission(spec=node(**given), owner_id=owner_id, key=key, rerun_if_lost=rerun_if_lost)


def recorded(status: Status = Status.PENDING, *, source: bool = True, **given: Any) -> Workload:
    """Create a row as the lifecycle would have left it."""
    now = datetime.now(UTC)
    row: dict[str, Any] = {
        "status": status,
        "runtime": "node",
        "isolation_used": "isolate",
        "rule": "runtime node → isolate",
        "cpus": 1.0,
        "mem_mb": 256,
        "timeout_s": 10.0,
        "created_at": now,
    }
    if status is not Status.PENDING:
        row |= {"started_at": now, "node": "elsewhere", "node_id": "elsewhere", "attempt": 1}
    if status in ENDED:
        row |= {"finished_at": now, "exit_reason": "exited"}
    workload = Workload.objects.create(**row | given)
    if source and status not in ENDED:
        rest = {"command": [], "input": None}
        Source.objects.create(workload=workload, code=CODE, rest=rest)
    return workload
