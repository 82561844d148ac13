"""Confines a process and then becomes the program: the first half of `sandbox.run_python`.

`python -P -s -S confine.py SECONDS MEMORY OUTPUT PROGRAM` sets limits of CPU seconds, bytes of
memory and bytes of a file, and on Linux a filter of system calls. It imports nothing but the
standard library.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys

ARGUMENTS = ("-P", "-s", "-S", "-B", "-X", "utf8")
"""Python without site packages, without the folder of the script, and with files in UTF-8."""

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_DENIED = {
    # clone fork vfork; kill tkill tgkill pidfd_send_signal; ptrace process_vm_writev; socket;
    # io_uring_setup; setrlimit; unlink unlinkat rmdir rename renameat renameat2 truncate mkdir
    # mkdirat link linkat symlink symlinkat mknod mknodat creat; chmod fchmodat chown lchown
    # fchownat; mount umount2 reboot
    "x86_64": (
        *(56, 57, 58, 62, 200, 234, 424, 101, 311, 41, 425, 160, 87, 263, 84, 82, 264, 316, 76),
        *(83, 258, 86, 265, 88, 266, 133, 259, 85, 90, 268, 92, 94, 260, 165, 166, 169),
    ),
    "aarch64": (
        *(220, 129, 130, 131, 424, 117, 271, 198, 425, 164, 35, 38, 276, 45, 34, 37, 36, 33, 53),
        *(54, 40, 39, 142),
    ),
}
"""Calls that fail with EPERM, by number."""
_ABSENT = (435, 437)
"""clone3 and openat2 fail with ENOSYS: their arguments lie in memory, and callers fall back."""
_ARGUMENT = {
    "x86_64": ((2, 1, 0o1103), (257, 2, 0o1103), (302, 2, 0xFFFFFFFF)),
    "aarch64": ((56, 2, 0o1103), (261, 2, 0xFFFFFFFF)),
}
"""Calls that fail if an argument has any of these bits: open and openat for writing or creating,
prlimit64 with a new limit."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of classic BPF
_ALLOW, _EPERM, _ENOSYS, _KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


def limit(seconds: int, memory: int, output: int) -> None:
    """Sets limits that the process cannot raise again: CPU seconds, bytes of memory, bytes of a
    file, and no further processes, which root is not held to."""
    for name, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, output),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (value, value))


def filter_calls() -> bool:
    """Denies processes, threads, signals, sockets and changes of files for good; root too.

    Returns:
      Whether that was possible: on Linux on two architectures, where the kernel has seccomp.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _ARCHITECTURES:
        return False
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCHITECTURES[machine]), (_RETURN, 0, 0, _KILL)]
    steps += [(_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _EPERM)]
    for number in _DENIED[machine]:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    for number in _ABSENT:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ENOSYS)]
    for number, argument, bits in _ARGUMENT[machine]:
        steps += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, 16 + 8 * argument)]
        steps += [(_ANY_BIT, 0, 1, bits), (_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(code)))
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    no_new_privileges, set_seccomp, by_filter = 38, 22, 2
    return not (
        prctl(no_new_privileges, 1, 0, 0, 0)
        or prctl(set_seccomp, by_filter, ctypes.addressof(program), 0, 0)
    )


def _main() -> None:
    *limits, path = sys.argv[1:]
    limit(*map(int, limits))
    filter_calls()
    os.execv(sys.executable, [sys.executable, *ARGUMENTS, path])


if __name__ == "__main__":
    _main()
