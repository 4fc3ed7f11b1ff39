"""What the kernel enforces on generated code: no network, no writing, no rights, no way out.

Owns namespaces, mounts, the filter of system calls and limits of single processes. Refuses to count
over processes: ``census.py`` does. Files can be read: this keeps an accident small and an answer
honest, it is no wall for secrets.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import sys
from contextlib import suppress
from typing import Any

NOT_CONFINED = 97  # status: this system offers no way to cut the network off
SIGNALLED = 128  # status: this, and the number of the signal that ended the code

_NEW_USER, _NEW_PID, _NEW_NET = 0x10000000, 0x20000000, 0x40000000
_NEW_MOUNTS, _NEW_IPC = 0x00020000, 0x08000000
_NEW_ANY = 0x7E020080  # every namespace that clone() can make
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP = 1, 4, 22
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_SECCOMP_MODE_FILTER = 2
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _ATTR_READ_ONLY = 442, -100, 0x8000, 1
_CAPABILITY_VERSION_3 = 0x20080522

# System calls by architecture: its number in the filter, and of each call there.
_ARCHITECTURES: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {
            **{"socket": 41, "ptrace": 101, "mount": 165, "umount2": 166, "shmget": 29},
            **{"unshare": 272, "setns": 308, "memfd_create": 319, "bpf": 321, "keyctl": 250},
            **{"process_vm_readv": 310, "process_vm_writev": 311, "add_key": 248},
            **{"perf_event_open": 298, "msgget": 68, "clone": 56, "memfd_secret": 447},
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            **{"socket": 198, "ptrace": 117, "mount": 40, "umount2": 39, "shmget": 194},
            **{"unshare": 97, "setns": 268, "memfd_create": 279, "bpf": 280, "keyctl": 219},
            **{"process_vm_readv": 270, "process_vm_writev": 271, "add_key": 217},
            **{"perf_event_open": 241, "msgget": 186, "clone": 220, "memfd_secret": 447},
        },
    ),
}
# Of every architecture: io_uring opens sockets as well, pidfd_getfd takes files of others, and the
# others change mounts.
_EVERYWHERE = (425, 438, 428, 429, 430, 442)
_CLONE3 = 435
# Classic BPF: load a word, compare with a constant, test bits, return.
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # places in struct seccomp_data
_ALLOW, _FAIL_WITH_EACCES, _FAIL_WITH_ENOSYS = 0x7FFF0000, 0x00050000 | 13, 0x00050000 | 38
_X32 = 0x40000000  # numbers of another calling convention


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


class _MountAttributes(ctypes.Structure):
    _fields_ = tuple(  # struct mount_attr
        (name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd")
    )


def _library() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def protect_from_peers() -> None:
    """No process of the same user can look into this one or change it."""
    _library().prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def allow_looking_in() -> None:
    """The supervisor may count this process's memory."""
    _library().prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def end_with_parent() -> None:
    """This process ends when the thread that started it does."""
    _library().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def adopt_orphans() -> None:
    """Processes whose parent has ended become this one's children, not another's."""
    _library().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def enter_namespaces(folder: str, folder_bytes: int, files: int) -> bool:
    """Goes on in a child of its own: as one of no other processes, without a network.

    Nothing but ``folder`` can be written there, and that is in memory.

    Args:
        folder: The working directory.
        folder_bytes: What its files may hold together.
        files: How many there may be.

    Returns:
        Whether the system has such namespaces. Without them this is still the same process.
    """
    library = _library()
    user, group = os.geteuid(), os.getegid()
    if not hasattr(library, "unshare"):
        return False
    wanted = _NEW_USER | _NEW_NET | _NEW_PID | _NEW_MOUNTS | _NEW_IPC
    if library.unshare(wanted) != 0:
        return False
    allow_looking_in()  # or /proc/self belongs to somebody else
    with suppress(OSError):
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    protect_from_peers()
    _go_on_in_child()  # number 1 of the namespace, which ends with it
    _restrict_files(library, folder, folder_bytes, files)
    _go_on_in_child()  # number 1 would not hear most signals
    return True


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _restrict_files(library: Any, folder: str, folder_bytes: int, files: int) -> None:
    """As far as the system lets it: where it does not, RLIMIT_FSIZE and the census remain."""
    if library.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        return
    read_only = _MountAttributes(_ATTR_READ_ONLY, 0, 0, 0)
    library.syscall(_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, ctypes.byref(read_only), 32)
    own = _MS_NOSUID | _MS_NODEV
    options = f"size={folder_bytes},nr_inodes={files},mode=700".encode()
    library.mount(b"tmpfs", folder.encode(), b"tmpfs", own, options)
    os.chdir(folder)
    # Locks between processes lie there.
    library.mount(b"tmpfs", b"/dev/shm", b"tmpfs", own | _MS_NOEXEC, b"size=1m,nr_inodes=64")
    library.mount(b"proc", b"/proc", b"proc", own | _MS_NOEXEC, None)


def _go_on_in_child() -> None:
    """Returns in a child that ends with this process; here, ends as the child does."""
    child = os.fork()
    if child == 0:
        end_with_parent()
        return
    while True:
        pid, status = os.wait()  # orphans too
        if pid == child:
            break
    # As in a shell: a process cannot always send itself the signal that ended its child.
    os._exit(SIGNALLED + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


def give_up_rights() -> bool:
    """No capabilities, none to gain, and no system call that opens a way out; children neither.

    Returns:
        False if this system has no such filter.
    """
    library = _library()
    if not hasattr(library, "prctl") or library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    library.capset(header, (ctypes.c_uint32 * 6)())
    found = _ARCHITECTURES.get(platform.machine())
    if found is None:
        return False
    program = _filter(*found)
    instructions = (_Instruction * len(program))(*program)
    filtering = _Program(len(program), instructions)
    return bool(library.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filtering)) == 0)


def _filter(architecture: int, calls: dict[str, int]) -> list[_Instruction]:
    """Refuses what is listed; everything else is allowed."""
    program = [
        _Instruction(_LOAD, 0, 0, _ARCHITECTURE),
        _Instruction(_JUMP_EQUAL, 1, 0, architecture),
        _Instruction(_RETURN, 0, 0, _FAIL_WITH_EACCES),
        _Instruction(_LOAD, 0, 0, _NUMBER),
        _Instruction(_JUMP_AT_LEAST, 0, 1, _X32),
        _Instruction(_RETURN, 0, 0, _FAIL_WITH_EACCES),
        _Instruction(_JUMP_EQUAL, 0, 1, _CLONE3),  # its flags lie in memory; clone() is the way
        _Instruction(_RETURN, 0, 0, _FAIL_WITH_ENOSYS),
    ]
    for name, number in calls.items():
        if name != "clone":
            program.append(_Instruction(_JUMP_EQUAL, 0, 1, number))
            program.append(_Instruction(_RETURN, 0, 0, _FAIL_WITH_EACCES))
    for number in _EVERYWHERE:
        program.append(_Instruction(_JUMP_EQUAL, 0, 1, number))
        program.append(_Instruction(_RETURN, 0, 0, _FAIL_WITH_EACCES))
    program += [
        _Instruction(_JUMP_EQUAL, 0, 3, calls["clone"]),
        _Instruction(_LOAD, 0, 0, _FIRST_ARGUMENT),
        _Instruction(_JUMP_BITS, 0, 1, _NEW_ANY),
        _Instruction(_RETURN, 0, 0, _FAIL_WITH_EACCES),
        _Instruction(_RETURN, 0, 0, _ALLOW),
    ]
    return program


def limit_process(cpu_seconds: int, memory_bytes: int, file_bytes: int) -> None:
    """Limits of each process, which the code cannot raise again; ``census.py`` has those of all."""
    for name, value in (
        (resource.RLIMIT_CPU, cpu_seconds + 1),  # the census, which is exact, comes first
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (value, value))


def close_everything_but(keep: set[int]) -> None:
    """Only the files in ``keep`` stay open, and the standard streams lead nowhere.

    What the code prints goes nowhere: endless output would fill the memory of whoever reads it.
    """
    silence = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        if number not in keep:
            os.dup2(silence, number)
    begin = 3
    for number in sorted(n for n in keep if n > 2):
        os.closerange(begin, number)
        begin = number + 1
    os.closerange(begin, 1 << 16)
    sys.stdin = os.fdopen(0, "r", closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
