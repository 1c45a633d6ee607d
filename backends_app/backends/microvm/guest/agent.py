"""Runs inside the machine, as its first process: takes a workload from the host, and runs it.

It speaks with the host over a virtio-serial port. Once the host listens, one byte says that it is
ready. Then the host sends a request: the length of a JSON object in four bytes, the object, the
source, the input. What comes back are frames, a letter, a length in four bytes, and as many bytes:
`o` and `e` what the program prints, `r` what it returns on descriptor 3, and at last `x`, a JSON
object that says how it ended. The host throws the machine away then; where it hangs up instead, as
it does before it takes the snapshot, the agent makes ready for another one.

Some programs are prepared: compiled first, by a process of the same user with all of the machine's
memory, or started by a harness that writes one byte to descriptor 3 when it is about to load the
program. `b` says that this is done, and only then the program is held to its share of processors.

A process of the user that workloads run as is made before it is needed, and waits for its program,
within the bounds of the program before. An emulator translates all that a clone runs anew, so what
need not be done after the snapshot is done before it.
"""

import ctypes
import fcntl
import io
import json
import os
import select
import shutil
import signal
import socket
import struct
import tarfile
import time
from contextlib import suppress
from typing import Any, NamedTuple

PORT = "/dev/vport1p1"
CGROUPS = "/sys/fs/cgroup"
SPACE = "/run/space"  # where everything that is written goes
FOLDERS = ("/work", "/tmp", "/var/tmp", "/dev/shm")
USER = 1000
READ_BYTES = 64 * 1024
# What a program prints in small pieces, one after the other, is gathered for a moment: to wake up
# for each would take most of the processor from it.
SMALL_BYTES, GATHER_S = 4096, 0.003
CPU_PERIOD_US = 100_000
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207  # random(4)
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
NOT_STARTED = 126
APPLE_DOUBLE = b"\0\5\x16\7"  # how a file begins that holds what macOS keeps beside another
TRACING = "/sys/kernel/tracing"
# The calls by which a program asks for memory, and what they return where there is none (ENOMEM).
ASKS = ("mmap", "mremap", "mprotect")
REFUSED = -12
TRACE_KB = 16
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 2, 4, 8, 32, 4096

Head = dict[str, Any]

libc = ctypes.CDLL(None, use_errno=True)


def mount(kind: str, target: str, flags: int = MS_NOSUID, options: str = "") -> None:
    names = [name.encode() for name in (kind, target, kind)]
    if libc.mount(*names, ctypes.c_ulong(flags), options.encode()):
        raise OSError(ctypes.get_errno(), target)


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def prepare() -> None:
    """What every machine has before anything is asked of it."""
    os.umask(0o022)
    mount("proc", "/proc", MS_NOSUID | MS_NODEV, "hidepid=invisible")
    mount("sysfs", "/sys", MS_NOSUID | MS_NODEV)
    mount("cgroup2", CGROUPS)
    write(f"{CGROUPS}/cgroup.subtree_control", "+cpu +memory +pids")
    os.mkdir("/dev/shm")
    os.mkdir(f"{SPACE}/shm")
    os.chmod(f"{SPACE}/shm", 0o1777)
    mount(f"{SPACE}/shm", "/dev/shm", MS_BIND)
    os.mkdir("/dev/pts")
    mount("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,mode=620,ptmxmode=666")
    if os.path.lexists("/dev/ptmx"):
        os.unlink("/dev/ptmx")
    os.symlink("pts/ptmx", "/dev/ptmx")
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"/dev/{name}")
    write("/proc/sys/user/max_user_namespaces", "0")  # where a user would be root, of much kernel
    socket.sethostname("workload")
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    watch_memory()


def watch_memory() -> None:
    """Have the kernel note each time that it refuses memory, which no counter of its own does."""
    mount("tracefs", TRACING, MS_NOSUID | MS_NODEV)
    write(f"{TRACING}/buffer_size_kb", str(TRACE_KB))
    events = [f"r:vulcan/{ask} __x64_sys_{ask} returned=$retval:s64\n" for ask in ASKS]
    write(f"{TRACING}/kprobe_events", "".join(events))
    for ask in ASKS:
        write(f"{TRACING}/events/vulcan/{ask}/filter", f"returned == {REFUSED}")
        write(f"{TRACING}/events/vulcan/{ask}/enable", "1")


def bound_files(size: int) -> None:
    mount("tmpfs", SPACE, MS_REMOUNT | MS_NOSUID | MS_NODEV, f"size={size}")


def memory_was_denied() -> bool:
    with open(f"{TRACING}/trace") as trace:
        return any(not line.startswith("#") for line in trace)


class Share(NamedTuple):
    """Bound what a program may use; 0 leaves it all of the machine."""

    cpus: float
    memory_bytes: int
    processes: int


class Request(NamedTuple):
    """Hold what the host asks for; `head` is as `channel.request` makes it."""

    head: Head
    source: bytes
    input: bytes

    def line(self) -> bytes:
        """Return what a process reads that waits for its program."""
        return json.dumps(self.head).encode() + b"\n" + self.source

    def share(self, *, begun: bool = False) -> Share:
        """Return what its processes may use, which is more before a program that marks begins."""
        share = Share(*(self.head[name] for name in Share._fields))
        return share._replace(cpus=0) if self.head["marks"] and not begun else share

    def to_compile(self) -> "Request":
        """Return what the compiler is to do, with all of the machine and an empty input."""
        all_of_it = {"argv": self.head["compile"], "cpus": 0, "memory_bytes": 0, "marks": False}
        return Request({**self.head, **all_of_it}, self.source, b"")

    def compiled(self) -> "Request":
        """Return what is to be run in the folder that the compiler has left."""
        return Request({**self.head, "source_bytes": 0, "file": ""}, b"", self.input)


class Port:
    """The one channel to the host."""

    def __init__(self) -> None:
        while not os.path.exists(PORT):
            time.sleep(0.01)
        self._file = os.open(PORT, os.O_RDWR | os.O_CLOEXEC)

    def say_ready(self) -> None:
        """Waits until the host listens."""
        os.write(self._file, b"!")

    def read(self, length: int) -> bytes:
        """As many bytes, or fewer when the host has hung up."""
        data = bytearray()
        while len(data) < length:
            part = os.read(self._file, min(length - len(data), READ_BYTES))
            if not part:
                break
            data += part
        return bytes(data)

    def send(self, kind: bytes, data: bytes = b"") -> None:
        rest = kind + struct.pack(">I", len(data)) + data
        while rest:
            rest = rest[os.write(self._file, rest) :]

    def request(self) -> Request | None:
        """The request with its source and its input, or None when the host has hung up."""
        length = self.read(4)
        if not length:
            return None
        text = self.read(*struct.unpack(">I", length))
        head: Head = json.loads(text)
        source = self.read(head["source_bytes"])
        return Request(head, source, self.read(head["input_bytes"]))


class Job:
    """A process that waits for its program, in a control group of its own, and how it went."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.group = f"{CGROUPS}/job{number}"
        self._bounds: Share | None = None
        self._marked: Share | None = None  # from the first byte on that comes on descriptor 3
        os.mkdir(self.group)
        write(f"{self.group}/memory.oom.group", "1")
        pipes = [os.pipe() for _ in range(5)]
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._become([pipes[0][0], *(pipe[1] for pipe in pipes[1:4])], pipes[4][0])
            except BaseException as error:  # noqa: BLE001 - a copy of the agent must not live on
                os.write(2, f"The program was not started: {error}\n".encode())
            os._exit(NOT_STARTED)
        for ours, theirs in [pipes[0][::-1], *pipes[1:4], pipes[4][::-1]]:
            os.close(theirs)
            os.set_blocking(ours, False)
        self._stdin, self._control = pipes[0][1], pipes[4][1]
        self._outputs = {pipes[1][0]: b"o", pipes[2][0]: b"e", pipes[3][0]: b"r"}
        os.set_blocking(self._control, True)

    def _become(self, streams: list[int], control: int) -> None:
        """In the child: wait for the request, and become its program."""
        write(f"{self.group}/cgroup.procs", "0")
        os.setsid()
        high = [fcntl.fcntl(stream, fcntl.F_DUPFD, 64) for stream in (*streams, control)]
        os.closerange(0, 64)
        for number, stream in enumerate(high[:4]):
            os.dup2(stream, number)
            os.fchown(number, USER, USER)  # so that it can be opened by its name, too
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        os.chdir("/work")
        with open(high[4], "rb") as given:
            request = json.loads(given.readline())
            source = given.read(request["source_bytes"])
        for stream in high[:4]:
            os.close(stream)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python
            signal.signal(ignored, signal.SIG_DFL)
        if request["file"] is None:
            unpack(source)
        elif request["file"]:
            with open(request["file"], "wb") as file:
                file.write(source)
        try:
            os.execvpe(request["argv"][0], request["argv"], request["environment"])
        except FileNotFoundError:
            raise FileNotFoundError(why_not_found(request["argv"][0])) from None

    def run(self, port: Port, wakeup: int, given: Request) -> dict[str, Any]:
        """Feed and read the program until it has ended; return how, and leave nothing of it."""
        self._marked = given.share(begun=True) if given.head["marks"] else None
        self.bound(given.share())
        used_us = self._numbers("cpu.stat")["usage_usec"]
        code = os.waitstatus_to_exitcode(self._serve(port, wakeup, given.line(), given.input))
        write(f"{self.group}/cgroup.kill", "1")
        for stream in list(self._outputs):
            with suppress(BlockingIOError):  # what was killed may have it open for a moment yet
                while self._read(port, stream):
                    pass
        starved = refused = denied = full = False
        if code != 0:  # otherwise it has got over what was refused to it
            starved = self._numbers("memory.events")["oom_kill"] > 0
            refused = self._numbers("pids.events")["max"] > 0
            denied = memory_was_denied()
            space = os.statvfs(SPACE)
            full = space.f_bavail == 0 or space.f_favail == 0
        return {
            "code": code,
            "cpu_us": self._numbers("cpu.stat")["usage_usec"] - used_us,
            "memory_bytes": int(self._text("memory.peak")),
            "starved": starved,
            "refused": refused,
            "denied": denied,
            "full": full,
        }

    def successor(self) -> "Job":
        """Return the next one, with nothing left of this one."""
        self._forget()
        write(f"{TRACING}/trace", "")
        return Job(self._number + 1)

    def _forget(self) -> None:
        """Close what is open, and remove the group, as soon as its last process is gone."""
        for stream in (self._stdin, self._control, *self._outputs):
            if stream >= 0:
                os.close(stream)
        while True:
            try:
                os.rmdir(self.group)
                return
            except OSError:
                reap()
                time.sleep(0.01)

    def bound(self, share: Share) -> None:
        """Hold the processes of the group to their share."""
        if share == self._bounds:
            return
        self._bounds = share
        write(f"{self.group}/memory.max", str(share.memory_bytes or "max"))
        write(f"{self.group}/pids.max", str(share.processes))
        quota = max(1000, int(share.cpus * CPU_PERIOD_US)) if share.cpus else "max"
        write(f"{self.group}/cpu.max", f"{quota} {CPU_PERIOD_US}")

    def _serve(self, port: Port, wakeup: int, line: bytes, given: bytes) -> int:
        unsent = {self._control: memoryview(line), self._stdin: memoryview(given)}
        events = select.poll()
        events.register(wakeup, select.POLLIN)
        for stream in self._outputs:
            events.register(stream, select.POLLIN)
        for stream in unsent:
            os.set_blocking(stream, False)
            events.register(stream, select.POLLOUT)
        while True:
            gathers = False
            for stream, _ in events.poll():
                if stream == wakeup:
                    os.read(wakeup, READ_BYTES)
                    if (ended := reap().get(self._pid)) is not None:
                        return ended
                elif stream in unsent:
                    unsent[stream] = self._feed(stream, unsent[stream])
                    if not unsent[stream]:
                        events.unregister(stream)
                        os.close(stream)
                        if stream == self._control:
                            self._control = -1
                        else:
                            self._stdin = -1
                elif (length := self._read(port, stream)) == 0:
                    events.unregister(stream)
                else:
                    gathers = length < SMALL_BYTES
            if gathers:
                time.sleep(GATHER_S)

    @staticmethod
    def _feed(stream: int, rest: memoryview) -> memoryview:
        try:
            return rest[os.write(stream, rest[:READ_BYTES]) :]
        except BlockingIOError:
            return rest
        except BrokenPipeError:  # it need not read all of it
            return rest[:0]

    def _read(self, port: Port, stream: int) -> int:
        """Pass on what is there, and return its length: 0 at its end."""
        data = os.read(stream, READ_BYTES)
        length = len(data)
        if data and self._marked and self._outputs[stream] == b"r":
            self.bound(self._marked)
            self._marked = None
            port.send(b"b")
            data = data[1:]
        if data:
            port.send(self._outputs[stream], data)
        return length

    def _text(self, name: str) -> str:
        with open(f"{self.group}/{name}") as file:
            return file.read()

    def _numbers(self, name: str) -> dict[str, int]:
        lines = (line.split() for line in self._text(name).splitlines())
        return {word: int(number) for word, number in lines}


def reap() -> dict[int, int]:
    """How each child ended that has; orphans of the program are the first process's children."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not pid:
            return ended
        ended[pid] = status


def why_not_found(program: str) -> str:
    """A script that is there lacks its interpreter, for which Linux has no error of its own."""
    try:
        with open(program, "rb") as file:
            line = file.read(256).partition(b"\n")[0]
    except OSError:
        return f"there is no {program!r}"
    interpreter = line[2:].decode(errors="replace")
    if not line.startswith(b"#!"):
        return f"what {program!r} is linked with is not there"
    if line.endswith(b"\r"):
        return f"the first line of {program!r} ends with CR LF: there is no {interpreter!r}"
    return f"{program!r} asks for {interpreter!r}, which is not there"


def unpack(archive: bytes) -> None:
    """Unpack a tar.gz that the host has judged; here it is nobody's danger.

    A link may name what comes later, so links are made last.
    """
    links = []
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for member in tar:
            if member.isdir():
                os.makedirs(member.name, exist_ok=True)
            elif member.issym():
                links.append((member.linkname, member.name))
            elif member.isreg() and not beside(tar, member):
                if folder := os.path.dirname(member.name):
                    os.makedirs(folder, exist_ok=True)
                with open(member.name, "wb") as file:
                    content = tar.extractfile(member)
                    assert content is not None
                    shutil.copyfileobj(content, file)
                os.chmod(member.name, 0o755 if member.mode & 0o111 else 0o644)
    for target, name in links:
        if folder := os.path.dirname(name):
            os.makedirs(folder, exist_ok=True)
        os.symlink(target, name)


def beside(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
    """Tell whether a file is what the tar of macOS puts beside another: its resources."""
    content = tar.extractfile(member)
    return (
        os.path.basename(member.name).startswith("._")
        and content is not None
        and content.read(len(APPLE_DOUBLE)) == APPLE_DOUBLE
    )


class Self:
    """What a clone has like all others, until it is told its own: entropy, time and name."""

    def __init__(self) -> None:
        self._random = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
        self._id = os.open("/etc/machine-id", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o444)

    def become(self, head: Head) -> None:
        time.clock_settime_ns(time.CLOCK_REALTIME, head["now_ns"])
        seed = bytes.fromhex(head["seed"])
        given = struct.pack("ii", 8 * len(seed), len(seed)) + seed
        fcntl.ioctl(self._random, RNDADDENTROPY, given)
        fcntl.ioctl(self._random, RNDRESEEDCRNG)
        os.pwrite(self._id, head["machine_id"].encode() + b"\n", 0)


def clear() -> None:
    """For the program after this one, which only a snapshot has."""
    for folder in FOLDERS:
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def main() -> None:
    prepare()
    wakeup, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    port = Port()
    own, disk_bytes = Self(), 0
    job = Job(0)
    while True:
        port.say_ready()
        while (given := port.request()) is not None:
            own.become(given.head)
            if given.head["disk_bytes"] != disk_bytes:
                disk_bytes = given.head["disk_bytes"]
                bound_files(disk_bytes)
            first = given.to_compile() if given.head["compile"] else given
            account = job.run(port, wakeup, first)
            if first is not given and account["code"] == 0:
                port.send(b"b")
                job = job.successor()
                account = job.run(port, wakeup, given.compiled())
            port.send(b"x", json.dumps(account).encode())
            job = job.successor()
            job.bound(first.share())
            clear()


main()
