"""How the C library deals with memory that is freed."""

import contextlib
import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 2**31 - 1  # of an int
_READER_MAPPED, _READER_KEPT = 2**23, 2**25  # bytes


def keep_freed_memory() -> bool:
    """Lets glibc reuse the memory of freed tensors, in place of giving it back to the system; whether it does.

    By default each allocation above 32 MiB is mapped anew, and its pages are zeroed by the kernel at their first touch:
    activations of a batch are such allocations. Costs nothing but that the process stays as large as it once was.
    For a process that computes on the CPU. DDFNET_MALLOC=0 leaves the C library as it is, as do variables MALLOC_* and
    GLIBC_TUNABLES, by which a user has decided, and systems without glibc.
    """
    # Old versions of glibc take no more than 32 MiB.
    return _set_malloc(mapped_from=2**30, kept=_LARGEST) or _set_malloc(mapped_from=2**25, kept=_LARGEST)


def return_large_blocks() -> bool:
    """Gives the memory of large freed images back to the system; whether glibc does.

    For a process that reads images. Without it glibc keeps for good what one unusually large image took once; images
    of usual sizes are no larger than what is kept here, so that reading takes no longer. The same variables leave the C
    library as it is.
    """
    return _set_malloc(mapped_from=_READER_MAPPED, kept=_READER_KEPT)


def _set_malloc(*, mapped_from: int, kept: int) -> bool:
    decided = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    if sys.platform != "linux" or decided or os.environ.get("DDFNET_MALLOC") == "0":
        return False
    with contextlib.suppress(OSError, AttributeError, ValueError):  # musl has no such function, or it does nothing
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  (glibc alone has it)
        return bool(library.mallopt(_M_MMAP_THRESHOLD, mapped_from) and library.mallopt(_M_TRIM_THRESHOLD, kept))
    return False
