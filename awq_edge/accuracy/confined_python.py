"""A program of its own: runs Python code from standard input without a network and within limits.

Owns the confinement. Started by ``code_runner.py`` with a JSON object of limits as its argument; it
imports nothing but the standard library. Refuses to run anything if the network cannot be cut off.
Files are not hidden: limits keep an accident small, they are no wall against malice.

It ends with status 0 and prints the word given as "done" if the code ran to its end.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import sys

NOT_CONFINED = 97  # status: this system offers no way to cut the network off
SIGNALLED = 128  # status: this, and the number of the signal that ended the code

_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
# Numbers of the system calls that open sockets: socket and, which can do the same, io_uring_setup.
_SOCKET_CALLS = {"x86_64": (41, 425), "aarch64": (198, 425)}
# Classic BPF: load a word, compare with a constant, return.
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _FAIL_WITH_EACCES = 0x7FFF0000, 0x00050000 | 13


class _Instruction(ctypes.Structure):
    _fields_ = (  # struct sock_filter
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("constant", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (  # struct sock_fprog
        ("length", ctypes.c_uint16),
        ("instructions", ctypes.POINTER(_Instruction)),
    )


def cut_off() -> bool:
    """Namespaces of its own without a network; where forbidden, a filter that refuses sockets.

    In a namespace of processes whatever the code leaves behind ends with it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "unshare"):
        if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWPID) == 0:
            _go_on_in_child(libc)  # number 1 of the namespace, which ends with it
            _go_on_in_child(libc)  # number 1 would not hear most signals
            return True
        if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
            return True
    return refuse_sockets(libc)


def _go_on_in_child(libc: ctypes.CDLL) -> None:
    """Returns in a child that ends with this process; here, ends as the child does."""
    child = os.fork()
    if child == 0:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        return
    _, status = os.waitpid(child, 0)
    # As in a shell: a process cannot always send itself the signal that ended its child.
    os._exit(SIGNALLED + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


def refuse_sockets(libc: ctypes.CDLL) -> bool:
    """Makes the kernel fail every call that opens a socket, here and in children."""
    calls = _SOCKET_CALLS.get(platform.machine())
    if calls is None or not hasattr(libc, "prctl"):
        return False
    program = [_Instruction(_LOAD, 0, 0, 0)]  # the call's number
    for left, call in zip(range(len(calls) - 1, -1, -1), calls):
        program.append(_Instruction(_JUMP_EQUAL, left + 1, 0, call))
    program += [_Instruction(_RETURN, 0, 0, _ALLOW), _Instruction(_RETURN, 0, 0, _FAIL_WITH_EACCES)]
    instructions = (_Instruction * len(program))(*program)
    filtering = _Program(len(program), instructions)
    return bool(
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        and libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filtering)) == 0
    )


def set_limits(limits: dict[str, int]) -> None:
    """Limits that the kernel enforces and the code cannot raise again."""
    for name, value in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (value, value))


def main() -> None:
    """Confines itself, then runs the code."""
    settings = json.loads(sys.argv[1])
    code = sys.stdin.buffer.read().decode("utf-8")
    if not cut_off():
        sys.exit(NOT_CONFINED)
    set_limits(settings)
    answer, complaint = os.dup(sys.stdout.fileno()), os.dup(sys.stderr.fileno())
    # What the code prints goes nowhere: endless output would fill the memory of whoever reads it.
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        os.dup2(silence, stream.fileno())
    # SystemExit included: code that leaves early has not passed what comes after it.
    try:
        exec(compile(code, "<generated>", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        os.write(complaint, f"{type(error).__name__}: {error}"[:300].encode(errors="replace"))
        os._exit(1)
    os.write(answer, settings["done"].encode())
    os._exit(0)


if __name__ == "__main__":
    main()
