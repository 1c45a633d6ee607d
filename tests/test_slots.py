"""Slots apply to the whole host and are released however their holder ends."""

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from backends_app.exceptions import BackendAtCapacity, BackendUnavailable
from backends_app.execution.slots import (
    acquire_slot,
    is_locked,
    remove_stale_locks,
    slots_in_use,
    wait_for_slot,
    workload_lock,
)
from tests.support.programs import PATIENCE_S, ROOT, wait_until
from tests.support.slots import has_waiter

HOLDER = """
import sys, time
from pathlib import Path
from backends_app.execution.slots import acquire_slot, slots_in_use
with acquire_slot("isolate", 1, Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(1000)
"""

MARKER = """
import sys, time
from pathlib import Path
from backends_app.execution.slots import workload_lock
with workload_lock("killed", Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(1000)
"""


def test_one_more_than_the_limit_is_refused(runtime_dir: Path):
    with acquire_slot("isolate", 2, runtime_dir), acquire_slot("isolate", 2, runtime_dir):
        with pytest.raises(BackendAtCapacity) as raised, acquire_slot("isolate", 2, runtime_dir):
            pass
        assert (raised.value.name, raised.value.limit) == ("isolate", 2)
        with acquire_slot("gvisor", 2, runtime_dir):
            pass
    with acquire_slot("isolate", 2, runtime_dir):
        pass


def test_a_slot_is_freed_by_an_error(runtime_dir: Path):
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), acquire_slot("isolate", 1, runtime_dir):
            _ = 1 / 0


def test_the_slot_of_another_process_is_released_at_its_death(runtime_dir: Path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(runtime_dir)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(BackendAtCapacity), acquire_slot("isolate", 1, runtime_dir):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with acquire_slot("isolate", 1, runtime_dir):
        pass


def test_a_child_of_the_holder_does_not_inherit_the_slot(runtime_dir: Path):
    with acquire_slot("isolate", 1, runtime_dir):
        child = subprocess.Popen(["/bin/sleep", "1000"], close_fds=False)
    with acquire_slot("isolate", 1, runtime_dir):
        pass
    child.kill()
    child.wait()


def test_never_more_than_the_limit_at_once(runtime_dir: Path, busy_interpreter):
    inside, most, lock = [0], [0], threading.Lock()

    def work() -> None:
        for _ in range(50):
            try:
                with acquire_slot("isolate", 3, runtime_dir):
                    with lock:
                        inside[0] += 1
                        most[0] = max(most[0], inside[0])
                    with lock:
                        inside[0] -= 1
            except BackendAtCapacity:
                pass

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most[0] <= 3


def test_a_waiting_process_is_never_overtaken(runtime_dir: Path):
    """Two slots, one in use: the waiting process holds the turn before it tries the other."""
    turns: list[str] = []

    def wait() -> None:
        with wait_for_slot("isolate", 1, runtime_dir, lambda: False) as has_slot:
            turns.append(f"{has_slot}")

    with acquire_slot("isolate", 1, runtime_dir):
        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: has_waiter("isolate", 1, runtime_dir))
    thread.join(PATIENCE_S)
    assert turns == ["True"]
    with acquire_slot("isolate", 1, runtime_dir):
        pass


def test_a_wait_that_stops_leaves_no_slot_and_no_turn(runtime_dir: Path):
    with (
        acquire_slot("isolate", 1, runtime_dir),
        wait_for_slot("isolate", 1, runtime_dir, lambda: True) as has_slot,
    ):
        assert not has_slot
        with acquire_slot("isolate", 2, runtime_dir):
            pass


def test_no_file_descriptor_leaks(runtime_dir: Path):
    before = len(os.listdir("/proc/self/fd"))
    with acquire_slot("isolate", 1, runtime_dir):
        for _ in range(10):
            with pytest.raises(BackendAtCapacity), acquire_slot("isolate", 1, runtime_dir):
                pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    file = tmp_path / "file"
    file.touch()
    for folder in (shared, link, file, file / "below"):
        with pytest.raises(BackendUnavailable) as raised, acquire_slot("isolate", 1, folder):
            pass
        assert raised.value.name == "isolate"
        assert str(tmp_path) not in str(raised.value)


def test_the_folder_is_made_for_this_user_alone(tmp_path: Path):
    folder = tmp_path / "made"
    with acquire_slot("isolate", 1, folder):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_slots_in_use_are_counted_without_locking(runtime_dir: Path):
    assert slots_in_use("one", 3, runtime_dir) == 0
    with (
        acquire_slot("one", 3, runtime_dir),
        acquire_slot("one", 3, runtime_dir),
        acquire_slot("other", 3, runtime_dir),
    ):
        assert slots_in_use("one", 3, runtime_dir) == 2
    assert slots_in_use("one", 3, runtime_dir) == 0


def test_only_the_locks_of_killed_processes_are_removed(runtime_dir: Path):
    holder = subprocess.Popen(
        [sys.executable, "-c", MARKER, str(runtime_dir)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    with workload_lock("mine", runtime_dir), acquire_slot("isolate", 1, runtime_dir):
        assert remove_stale_locks(runtime_dir) == 0
        holder.kill()
        holder.wait()
        holder.stdout.close()
        assert remove_stale_locks(runtime_dir) == 1
        assert {file.name for file in runtime_dir.iterdir()} == {
            *("mine.running", "isolate.0.slot", "isolate.turn")
        }
        assert is_locked("mine", runtime_dir)
    assert remove_stale_locks(runtime_dir) == 0


def test_a_lock_whose_file_was_removed_is_created_again(runtime_dir: Path, monkeypatch):
    """Another process removes the file between its opening and its locking."""
    lock, swept = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if not swept:
            swept.append(True)
            assert remove_stale_locks(runtime_dir) == 1
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with workload_lock("mine", runtime_dir) as mine:
        assert mine
        assert is_locked("mine", runtime_dir)
        assert (runtime_dir / "mine.running").exists()


def test_removing_stale_locks_keeps_held_locks(runtime_dir: Path, busy_interpreter):
    """A held lock is always seen as held, while stale locks are removed concurrently."""
    done, lost = threading.Event(), []

    def work(number: int) -> None:
        for _ in range(100):
            with workload_lock(f"{number}", runtime_dir) as mine:
                if mine and not is_locked(f"{number}", runtime_dir):
                    lost.append(number)

    def clean() -> None:
        while not done.is_set():
            remove_stale_locks(runtime_dir)

    sweeper = threading.Thread(target=clean)
    sweeper.start()
    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    sweeper.join()
    assert not lost
