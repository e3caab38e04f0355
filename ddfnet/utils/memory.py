"""How the C library deals with memory that is freed."""

import contextlib
import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 2**31 - 1  # of an int


def keep_freed_memory() -> bool:
    """Lets glibc reuse the memory of freed tensors, in place of giving it back to the system; whether it does.

    By default each allocation above 32 MiB is mapped anew, and its pages are zeroed by the kernel at their first touch:
    activations of a batch are such allocations. Costs nothing but that the process stays as large as it once was.
    For a process that computes on the CPU. DDFNET_MALLOC=0 leaves the C library as it is, as do variables MALLOC_* and
    GLIBC_TUNABLES, by which a user has decided, and systems without glibc.
    """
    decided = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    if sys.platform != "linux" or decided or os.environ.get("DDFNET_MALLOC") == "0":
        return False
    with contextlib.suppress(OSError, AttributeError, ValueError):  # musl has no such function, or it does nothing
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  (glibc alone has it)
        kept = library.mallopt(_M_MMAP_THRESHOLD, 2**30) or library.mallopt(_M_MMAP_THRESHOLD, 2**25)  # old versions
        return bool(kept and library.mallopt(_M_TRIM_THRESHOLD, _LARGEST))
    return False
