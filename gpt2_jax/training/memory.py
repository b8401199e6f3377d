"""Keeps the C library from giving memory back between steps."""

import ctypes
import platform

import jax

# mallopt's parameters, from <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """On CPU with glibc: freed blocks stay in the process, in one arena, however large they are.

    XLA allocates its temporary buffer anew each step. Above 32 MB glibc maps it from the kernel and unmaps it
    afterwards, and each step faults every page in again: half the time of a small model's step.
    """
    if jax.default_backend() != "cpu" or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_MAX, 0)  # not even what is above the largest threshold that can be set, 2 GB
    mallopt(_M_TRIM_THRESHOLD, -1)
    mallopt(_M_TOP_PAD, 2**28)
