"""Compiles C sources with the user's compiler at their first use, and keeps the libraries on disk.

Safe for several processes at once: each compiles into a folder of its own and moves the library into place, where the
last one replaces its equal. The name of a library is a hash of everything it depends on: sources, flags, compiler and
CPU, since code made with `-march=native` need not run on another machine that shares the home folder.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_logger = logging.getLogger("ddfnet")
# No -ffast-math: NaN and Inf go through, and sums are taken in the order in which they are written.
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-w")
_TUNING = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler knows
_SECONDS = 300


class BuildError(Exception):
    """There is no library, and why: one line."""


def load_library(sources: Sequence[Path], *defines: str) -> ctypes.CDLL:
    """The library made of the first of `sources`, which includes the others: from the cache, or compiled now.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    compiler = _compiler()
    settings = repr((compiler[1:], defines, _FLAGS, _TUNING))
    parts = (*(path.read_text() for path in sources), settings, _identity(compiler[0]), _cpu())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    cached = cache_folder() / f"{sources[0].stem}-{key[:24]}.so"
    with contextlib.suppress(OSError):  # not there yet
        if _is_trusted(cached) and _is_intact(cached):
            return ctypes.CDLL(str(cached))
    _logger.info("compiling %s for this machine, once", sources[0].name)
    with _build_folder(cached.parent) as folder:
        library = Path(folder) / cached.name
        _compile(compiler, sources[0], defines, library)
        data = library.read_bytes()
        library.write_bytes(data + hashlib.sha256(data).digest())  # loaders ignore what follows the last section
        try:
            loaded = ctypes.CDLL(str(library))  # stays loaded when its file is moved or deleted
        except OSError as error:
            raise BuildError(f"the library that {compiler[0]} made does not load: {error}") from None
        with contextlib.suppress(OSError):  # a folder that cannot be written: this process keeps its library to itself
            os.replace(library, cached)
        return loaded


def _is_trusted(library: Path) -> bool:
    """Whether nobody but this user and the administrator can have put it there: loading a library runs its code."""
    return all(
        status.st_uid in (0, os.getuid()) and not status.st_mode & stat.S_IWOTH
        for status in (library.stat(), library.parent.stat())
    )


def _is_intact(library: Path) -> bool:
    """Whether its last bytes are the hash of all others: loading one cut short would kill the process."""
    data = library.read_bytes()
    return hashlib.sha256(data[:-32]).digest() == data[-32:]


def cache_folder() -> Path:
    """$DDFNET_CACHE/native, else ~/.cache/ddfnet/native."""
    root = os.environ.get("DDFNET_CACHE") or os.path.join("~", ".cache", "ddfnet")
    return Path(os.path.expanduser(root)) / "native"


def _build_folder(cache: Path) -> tempfile.TemporaryDirectory:
    """A folder for one build, beside the cached libraries, so that moving one there is atomic; else where it can be."""
    try:
        cache.mkdir(mode=0o755, parents=True, exist_ok=True)  # with any umask no folder that all can write
        return tempfile.TemporaryDirectory(dir=cache, prefix=".build-")
    except OSError:
        return tempfile.TemporaryDirectory(prefix="ddfnet-")


def _compiler() -> list[str]:
    """Path of the compiler, and the options that $CC gives it."""
    if sys.platform == "win32":
        raise BuildError("it is not made for Windows")
    if chosen := shlex.split(os.environ.get("CC", "")):
        if path := shutil.which(chosen[0]):
            return [path, *chosen[1:]]
        raise BuildError(f"CC={os.environ['CC']} names no program on the PATH")
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    raise BuildError("no C compiler: none of cc, gcc, clang is on the PATH, and CC names none")


def _identity(compiler: str) -> str:
    """Changes when the compiler is updated, and costs no process of its own at every start."""
    path = os.path.realpath(compiler)
    status = os.stat(path)
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def _cpu() -> str:
    """Everything that `-march=native` can depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.platform()} {platform.processor()}"
    fields = ("model name", "flags", "Features", "CPU implementer", "CPU part", "isa")
    return "\n".join([platform.machine(), *dict.fromkeys(line for line in lines if line.startswith(fields))])


def _compile(compiler: Sequence[str], source: Path, defines: Sequence[str], library: Path) -> None:
    first_error = ""
    for tuning in _TUNING:
        options = (*_FLAGS, *tuning, *(f"-D{define}" for define in defines))
        command = [*compiler, *options, str(source), "-lm", "-o", str(library)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"{compiler[0]} cannot be run: {error}") from None
        if done.returncode == 0:
            return
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        first_error = first_error or next((line for line in lines if "error" in line), " ".join(lines[-1:]))
    raise BuildError(f"{compiler[0]} fails: {first_error}")
