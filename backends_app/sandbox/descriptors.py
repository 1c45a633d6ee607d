"""Receive messages with attached file descriptors, which must not leak into later programs."""

import array
import socket


def receive(
    channel: socket.socket, max_bytes: int, max_descriptors: int
) -> tuple[bytes, list[int]]:
    """Return one message and its attached descriptors, each close-on-exec.

    `socket.recv_fds` takes flags but does not pass them on (CPython 3.11), so its descriptors
    would stay open in every process that is started.
    """
    descriptors = array.array("i")
    data, attached, _, _ = channel.recvmsg(
        max_bytes,
        socket.CMSG_LEN(max_descriptors * descriptors.itemsize),
        socket.MSG_CMSG_CLOEXEC,
    )
    for level, kind, content in attached:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            whole = len(content) - len(content) % descriptors.itemsize
            descriptors.frombytes(content[:whole])
    return data, list(descriptors)
