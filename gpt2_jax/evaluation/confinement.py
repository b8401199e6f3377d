"""The inside of a process that runs code nobody has read: `python -I confinement.py`, limits and code on its input.

The process confines itself before it compiles the code: what it gives up does not come back. It has the standard
library alone, and reads {"limits", "code", "token", "report"} as JSON from its input. To the descriptor "report" it
writes `READY` when it is confined, and the token once the code has run to its end. This keeps mistakes from harm. Who
hunts for the token in the frames of the process finds it: against someone who means harm, another machine is the wall.
"""

import builtins
import ctypes
import errno
import json
import os
import platform
import resource
import struct
import sys
import types

READY = b"."
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
# Of each architecture its audit name, and the numbers of the system calls that are refused: those that make processes
# and threads, open sockets (io_uring, too), send signals, reach into other processes, raise limits, change files'
# owners and modes.
_MACHINES = {
    "x86_64": (0xC000003E, {
        "clone": 56, "fork": 57, "vfork": 58, "clone3": 435, "socket": 41, "socketpair": 53, "io_uring_setup": 425,
        "kill": 62, "rt_sigqueueinfo": 129, "tkill": 200, "tgkill": 234, "rt_tgsigqueueinfo": 297,
        "pidfd_send_signal": 424, "ptrace": 101, "process_vm_writev": 311, "setrlimit": 160, "prlimit64": 302,
        "chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "chown": 92, "fchown": 93, "lchown": 94,
        "fchownat": 260,
    }),
    "aarch64": (0xC00000B7, {
        "clone": 220, "clone3": 435, "socket": 198, "socketpair": 199, "io_uring_setup": 425, "kill": 129, "tkill": 130,
        "tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "pidfd_send_signal": 424, "ptrace": 117,
        "process_vm_writev": 271, "setrlimit": 164, "prlimit64": 261, "fchmod": 52, "fchmodat": 53, "fchmodat2": 452,
        "fchownat": 54, "fchown": 55,
    }),
}  # fmt: skip
_X32 = 0x40000000  # the other calls of x86_64
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # of the packet filter's machine
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
# Landlock's rights to change files, by the version of its interface that brought them.
_WRITING = {1: 0x1FF0 | 0x2, 2: 0x2000, 3: 0x4000}


def supported() -> str | None:
    """Why this machine cannot confine a process; None is that it can."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return f"needs Linux on {' or '.join(_MACHINES)}, and this is {sys.platform} on {platform.machine()}"
    try:
        with open("/proc/sys/kernel/seccomp/actions_avail") as file:
            return None if "errno" in file.read() else "needs a kernel whose seccomp can refuse system calls"
    except OSError:
        return "needs a kernel with seccomp, to forbid processes and sockets"


def guards_files() -> bool:
    """Whether the kernel has Landlock, which keeps a process from writing outside of its folder."""
    return sys.platform == "linux" and _landlock_version() > 0


def confine(limits: dict[str, int]) -> None:
    """Gives up, for good: more than `limits`, other processes and threads, sockets, signals, files but in this folder.

    Raises:
      OSError: the kernel refuses a step.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    _must(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    if guards_files():
        _keep_to_folder(libc, ".")
    audit, calls = _MACHINES[platform.machine()]
    program = [(_LOAD, 0, 0, 4), (_IF_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    left = len(calls) + 1
    program.append((_IF_AT_LEAST, left, 0, _X32))
    for number, call in enumerate(calls.values()):
        program.append((_IF_EQUAL, left - number - 1, 0, call))
    program += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE | errno.EPERM)]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    _must(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filter_, 0, 0), "seccomp")


def _landlock_version() -> int:
    return ctypes.CDLL(None, use_errno=True).syscall(_LANDLOCK_CREATE, None, 0, 1)


def _keep_to_folder(libc: ctypes.CDLL, folder: str) -> None:
    version = _landlock_version()
    rights = sum(bits for since, bits in _WRITING.items() if since <= version)
    rules = _must(libc.syscall(_LANDLOCK_CREATE, struct.pack("Q", rights), ctypes.c_size_t(8), 0), "landlock")
    beneath = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    _must(libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, beneath), 0), "landlock")
    _must(libc.syscall(_LANDLOCK_RESTRICT, rules, 0), "landlock")
    os.close(beneath)
    os.close(rules)


def _must(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def main() -> None:
    """Confines this process and runs the code as a module of its own."""
    request = json.load(sys.stdin)
    confine(request["limits"])
    os.write(request["report"], READY)
    builtins.exit = builtins.quit = sys.exit  # which come with the site's packages, and those are left out
    solution = sys.modules["solution"] = types.ModuleType("solution")
    exec(compile(request["code"], "<solution>", "exec"), vars(solution))
    sys.stdout.flush()
    os.write(request["report"], request["token"].encode())


if __name__ == "__main__":
    main()
