"""A seccomp filter in BPF by which the kernel denies the system calls that no workload needs.

The filter is a deny list: an allow list would break with the next release of the program it was
written for. The numbers are those of the kernel's syscall tables
(arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h).
"""

import ctypes
import errno
import platform
import struct

# name: (x86_64, aarch64); None if the architecture has no such call
DENIED_SYSCALLS: dict[str, tuple[int | None, int | None]] = {
    # another process, another program; `execveat` is how the launcher starts the only one
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    # network access, also without a namespace; socket pairs are not affected
    "socket": (41, 198),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    # objects that outlive the process
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # memory outside of the process's own, and files without a file system
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # namespaces and file systems
    "chroot": (161, 51),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "quotactl": (179, 60),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "fanotify_init": (300, 262),
    # large and rarely needed parts of the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "acct": (163, 89),
    "syslog": (103, 116),
    "personality": (135, 92),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
}
# calls that change a file without a write (which RLIMIT_FSIZE denies), change its permissions or
# lock it; and calls that move shared mappings
FILE_CHANGING_SYSCALLS: dict[str, tuple[int | None, int | None]] = {
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "fallocate": (285, 47),
    "creat": (85, None),
    "mremap": (25, 216),
    "remap_file_pages": (216, 234),
    "flock": (73, 32),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}
OPEN, OPENAT, OPENAT2 = (2, None), (257, 56), (437, 437)
O_TRUNC = 0o1000
FCNTL, F_SETLEASE = (72, 25), 1024
IOCTL = (16, 29)
IOCTLS = (0x5400, 0xAE00)  # terminals and pipes, and KVM; those of files can punch holes
IOCTL_TYPE = 0xFF00
MMAP = (9, 222)
MAP_SHARED = 1
MAX_SHARED_BYTES = 4 * 4096  # from offset 0: enough for KVM's page of each processor
CLONE, CLONE3 = (56, 220), (435, 435)
# Calls allowed only on the process itself: their first argument is 0 or its own id. It is the
# leader and the only member of its session.
SELF_ONLY_SYSCALLS = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}

# audit architecture and column of the tables above, by uname(2)'s machine name
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

CLONE_THREAD = 0x00010000
X32_BIT = 0x40000000  # marks the second set of syscall numbers of x86_64

# BPF, see linux/filter.h
LOAD, AND, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
NUMBER_AT, MACHINE_AT, FIRST_ARGUMENT_AT = 0, 4, 16  # in struct seccomp_data; little endian
ARGUMENT_BYTES = 8
ALLOW, KILL_PROCESS, REFUSE_WITH = 0x7FFF0000, 0x80000000, 0x00050000


class Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def supported() -> bool:
    return platform.machine() in MACHINES


def program(own_pid: int, *, protects_files: bool = False, devices: bool = False) -> Program:
    """Return the filter for the process `own_pid`, which may signal and limit only itself.

    With `protects_files` it cannot change any open file, whatever the mode it was opened with, as
    long as RLIMIT_FSIZE denies writes. With `devices` it may still map the first pages of one
    shared, which KVM requires.
    """
    machine, column = MACHINES[platform.machine()]
    refuse = _return(REFUSE_WITH | errno.EPERM)
    code = [
        _step(LOAD, MACHINE_AT),
        _step(EQUAL, machine, skip_if_true=1),
        _return(KILL_PROCESS),
        _step(LOAD, NUMBER_AT),
        _step(AT_LEAST, X32_BIT, skip_if_false=1),
        refuse,
        # Its flags lie in memory, where filters cannot read them; the C library retries with clone.
        _step(EQUAL, CLONE3[column], skip_if_false=1),
        _return(REFUSE_WITH | errno.ENOSYS),
    ]
    if protects_files:
        code += _file_rules(column, MAX_SHARED_BYTES if devices else 0)
    for numbers in (
        DENIED_SYSCALLS | FILE_CHANGING_SYSCALLS if protects_files else DENIED_SYSCALLS
    ).values():
        number = numbers[column]
        if number is not None:
            code += [_step(EQUAL, number, skip_if_false=1), refuse]
    code += [  # threads only
        _step(EQUAL, CLONE[column], skip_if_false=4),
        _step(LOAD, FIRST_ARGUMENT_AT),
        _step(ANY_BIT, CLONE_THREAD, skip_if_true=1),
        refuse,
        _return(ALLOW),
    ]
    for numbers in SELF_ONLY_SYSCALLS.values():
        code += [
            _step(EQUAL, numbers[column], skip_if_false=5),
            _step(LOAD, FIRST_ARGUMENT_AT),
            _step(EQUAL, own_pid, skip_if_true=2),
            _step(EQUAL, 0, skip_if_true=1),
            refuse,
            _return(ALLOW),
        ]
    code.append(_return(ALLOW))
    return Program(len(code), b"".join(code))


def _file_rules(column: int, max_shared: int) -> list[bytes]:
    """Return rules for calls that change a file or not depending on their arguments."""
    length, flags, offset = (_argument(place) for place in (1, 3, 5))
    high = ARGUMENT_BYTES // 2  # offset of the upper half; the filter loads 32 of 64 bits at once
    small = []
    for at, limit in ((length, max_shared), (length + high, 0), (offset, 0), (offset + high, 0)):
        small += [
            _step(LOAD, at),
            _step(AT_LEAST, limit + 1, skip_if_false=1),
            _refuse(errno.EPERM),
        ]
    private = [
        _step(LOAD, flags),
        _step(ANY_BIT, MAP_SHARED, skip_if_false=len(small)),  # a private mapping is allowed
        *small,
        _return(ALLOW),
    ]
    known = [_step(LOAD, _argument(1)), _step(AND, IOCTL_TYPE)]
    for kind in IOCTLS:
        known += [_step(EQUAL, kind, skip_if_false=1), _return(ALLOW)]
    known.append(_refuse(errno.EPERM))
    lease = [
        _step(LOAD, _argument(1)),
        _step(EQUAL, F_SETLEASE, skip_if_false=1),
        _refuse(errno.EPERM),
        _return(ALLOW),
    ]
    code = []
    for numbers, then in (
        (MMAP, private),
        (IOCTL, known),
        (FCNTL, lease),
        (OPEN, _deny_truncation(1)),
        (OPENAT, _deny_truncation(2)),
        (OPENAT2, [_refuse(errno.ENOSYS)]),  # its flags lie in memory
    ):
        number = numbers[column]
        if number is not None:
            code += [_step(EQUAL, number, skip_if_false=len(then)), *then]
    return code


def _deny_truncation(flags: int) -> list[bytes]:
    """Return rules that deny O_TRUNC, which Landlock covers only from version 3 on."""
    return [
        _step(LOAD, _argument(flags)),
        _step(ANY_BIT, O_TRUNC, skip_if_false=1),
        _refuse(errno.EPERM),
        _return(ALLOW),
    ]


def _argument(place: int) -> int:
    return FIRST_ARGUMENT_AT + ARGUMENT_BYTES * place


def _refuse(error: int) -> bytes:
    return _return(REFUSE_WITH | error)


def _step(operation: int, value: int, *, skip_if_true: int = 0, skip_if_false: int = 0) -> bytes:
    """struct sock_filter"""
    return struct.pack("=HBBI", operation, skip_if_true, skip_if_false, value)


def _return(value: int) -> bytes:
    return _step(RETURN, value)
