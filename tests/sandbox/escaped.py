"""Attempts of a program that has broken out of V8, on hosts that lack some sandbox layers.

    python -m tests.sandbox.escaped GIVEN [no-namespaces] [no-landlock] [no-seccomp] [not-root]

runs sandboxed Deno with all of its own permissions, including foreign functions, and prints one
JSON document: the active layers, the missing ones, and the outcome of each attempt.
"""

import ctypes
import errno
import json
import os
import struct
import sys
from base64 import b64encode

import deno

from backends_app.sandbox import seccomp
from backends_app.sandbox.client import Command, Launcher
from backends_app.sandbox.landlock import CREATE_RULESET
from backends_app.sandbox.libc import PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, libc, prctl
from backends_app.sandbox.root import CLONE_NEWUSER
from backends_app.sandbox.streams import Capture
from tests.sandbox import programs

PRCTL, SECCOMP = {"x86_64": (157, 317), "aarch64": (167, 277)}[os.uname().machine]
COLUMN = seccomp.MACHINES[os.uname().machine][1]

ATTEMPTS = """
const libc = Deno.dlopen("libc.so.6", {
  syscall: { parameters: Array(7).fill("i64"), result: "i64" },
  __errno_location: { parameters: [], result: "pointer" },
});
const pointer = (bytes) => BigInt(Deno.UnsafePointer.value(Deno.UnsafePointer.of(bytes)));
const text = (string) => pointer(kept[kept.push(new TextEncoder().encode(string + "\\0")) - 1]);
const kept = []; // what the kernel is pointed at must not be collected
function call(number, ...given) {
  const padded = [...given, 0, 0, 0, 0, 0, 0].slice(0, 6).map(BigInt);
  const result = libc.symbols.syscall(BigInt(number), ...padded);
  if (Number(result) >= 0) return Number(result);
  const at = libc.symbols.__errno_location();
  throw new Error(String(new Deno.UnsafePointerView(at).getInt32()));
}
const came = {};
async function attempt(name, action) {
  try {
    came[name] = ["done", String(await action())];
  } catch (error) {
    came[name] = ["refused", error.message];
  }
}
Deno.stdout.writeSync(new Uint8Array([10]));
const given = JSON.parse(await new Response(Deno.stdin.readable).text());
const { numbers } = given;
await attempt("see the environment", () => Object.keys(Deno.env.toObject()).sort());
await attempt("read a file", () => Deno.readTextFileSync("/etc/passwd"));
await attempt("read a secret of the server", () => Deno.readTextFileSync(given.secret));
await attempt("list the root", () => [...Deno.readDirSync("/")].map((entry) => entry.name).sort());
await attempt("list /proc", () => [...Deno.readDirSync("/proc")].map((entry) => entry.name));
await attempt("read its environment", () => Deno.readTextFileSync(`/proc/${given.server}/environ`));
for (const folder of [".", "/", "/tmp", "/dev/shm", "/var/tmp"]) {
  await attempt(`write to ${folder}`, () => Deno.writeTextFileSync(`${folder}/escaped`, "x"));
}
await attempt("keep something", () => localStorage.setItem("a", "b"));
await attempt("start a program", () => new Deno.Command("/bin/sh").outputSync().code);
await attempt("start itself", () => new Deno.Command(Deno.execPath()).outputSync().code);
if (given.become) {
  await attempt("become a program", () => call(numbers.execve, text("/bin/sh"), 0, 0));
  await attempt("become a program by execveat", () =>
    call(numbers.execveat, -100, text("/bin/sh"), 0, 0, 0));
}
await attempt("open a socket", () => call(numbers.socket, 2, 1, 0));
await attempt("reach the server by TCP", () => Deno.connect({ port: given.port }));
await attempt("reach a socket of the server", () =>
  Deno.connect({ transport: "unix", path: given.socket }));
await attempt("signal the launcher", () => Deno.kill(Deno.ppid, "SIGCONT"));
await attempt("signal the server", () => Deno.kill(given.server, "SIGCONT"));
await attempt("signal everybody", () => call(numbers.kill, -1, 0));
await attempt("raise a limit", () => {
  const unlimited = new BigUint64Array(2).fill(-1n);
  return call(numbers.setrlimit, 4, pointer(unlimited));
});
for (const [whom, pid] of [["server", given.server], ["launcher", Deno.ppid]]) {
  await attempt(`limit the ${whom}`, () => {
    const none = new BigUint64Array(2); // of the right to real-time priority, which nobody has
    return call(numbers.prlimit64, pid, 14, pointer(none), 0);
  });
}
await attempt("become root", () => call(numbers.setuid, 0));
await attempt("take much memory", () => new Uint8Array(6e9).length);
await attempt("take much memory for wasm", () =>
  [1, 2, 3].map(() => new WebAssembly.Memory({ initial: 60000 })).length);
await attempt("find descriptors", () => {
  const found = [];
  for (let number = 3; number < 300; number++) {
    try {
      const stat = new BigUint64Array(32);
      call(numbers.fstat, number, pointer(stat));
      if ((Number(stat[3] & 0xf000n) === 0x8000) || Number(stat[3] & 0xf000n) === 0x4000) {
        found.push(number); // a file or a folder; Deno has pipes and queues of its own
      }
    } catch {
      // there is none
    }
  }
  return found;
});
for (const [name, number] of Object.entries(given.calls)) {
  await attempt(`call ${name}`, () => call(number));
}
console.log(JSON.stringify(came));
Deno.exit(0);
"""


def without(refusals: dict[int, int], *, prctl_seccomp: bool) -> None:
    """Deny system calls to this process from now on, like a host that lacks them."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    code = [struct.pack("=HBBI", 0x20, 0, 0, 0)]
    for number, error in refusals.items():
        code.append(struct.pack("=HBBI", 0x15, 0, 1, number))
        code.append(struct.pack("=HBBI", 0x06, 0, 0, 0x00050000 | error))
    if prctl_seccomp:
        code.append(struct.pack("=HBBI", 0x15, 0, 3, PRCTL))
        code.append(struct.pack("=HBBI", 0x20, 0, 0, 16))
        code.append(struct.pack("=HBBI", 0x15, 0, 1, PR_SET_SECCOMP))
        code.append(struct.pack("=HBBI", 0x06, 0, 0, 0x00050000 | errno.EINVAL))
    code.append(struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000))
    program = seccomp.Program(len(code), b"".join(code))
    prctl(PR_SET_SECCOMP, 2, ctypes.byref(program))


def be_somebody_else() -> None:
    """Become user 1000 of a user namespace, without root and without capabilities."""
    user, group = os.geteuid(), os.getegid()
    assert libc.unshare(CLONE_NEWUSER) == 0
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"1000 {user} 1"),
        ("gid_map", f"1000 {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)


def main() -> None:
    lacks = sys.argv[2:]
    if "not-root" in lacks:
        be_somebody_else()
    refusals = {}
    if "no-namespaces" in lacks:
        refusals[seccomp.DENIED_SYSCALLS["unshare"][COLUMN]] = errno.EPERM
    if "no-landlock" in lacks:
        refusals[CREATE_RULESET] = errno.ENOSYS
    if "no-seccomp" in lacks:
        refusals[SECCOMP] = errno.ENOSYS
    if refusals:
        without(refusals, prctl_seccomp="no-seccomp" in lacks)
    launcher = Launcher(os.fsdecode(deno.find_deno_bin()), name="deno")
    active, missing = launcher.layers
    source = f"data:text/javascript;base64,{b64encode(ATTEMPTS.encode()).decode()}"
    command = Command(
        arguments=["run", "--quiet", "--allow-all", "--no-config", source],
        environment={"DENO_DIR": "/dev/null/deno", "NO_COLOR": "1"},
        memory_bytes=5000 * programs.MB,
    )
    stdout, stderr = Capture(100_000), Capture(10_000)
    attempt = programs.process(launcher, command)
    exit = attempt.run(sys.argv[1].encode(), stdout, stderr)
    launcher.close()
    assert exit.exit_code == 0, (exit, stdout.text(), stderr.text())
    print(json.dumps({"active": active, "missing": missing, "came": json.loads(stdout.text())}))


if __name__ == "__main__":
    main()
