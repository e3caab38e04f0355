"""Compiles C sources with the user's compiler at their first use, and keeps the libraries on disk.

Safe for several processes at once: each compiles into a file of its own and moves it into place; whoever comes last
replaces a library by an equal one. The name of a library is a hash of everything it depends on: source, flags,
compiler and CPU, since `-march=native` code of one machine may not run on another that shares the home folder.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# -O3 keeps the order of every sum as written, but for those marked `omp simd reduction`; no -ffast-math: NaN, Inf and
# reproducible sums matter. What a compiler does not know is left out of the next attempt.
_FLAGS = ("-O3", "-fopenmp-simd", "-fPIC", "-shared", "-pthread", "-w")
_TUNING = (("-march=native",), ("-mcpu=native",), ())
_SECONDS = 300


class BuildError(Exception):
    """Why there is no library: one line."""


def load(source: Path, *defines: str) -> ctypes.CDLL:
    """The library made of `source`, from the cache or compiled now.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    compiler = _compiler()
    key = hashlib.sha256()
    for part in (source.read_bytes(), repr((defines, _FLAGS, _TUNING)), _identity(compiler), _cpu()):
        key.update(part if isinstance(part, bytes) else part.encode())
    name = f"{source.stem}-{key.hexdigest()[:24]}.so"
    folder = cache_folder()
    try:
        return ctypes.CDLL(str(folder / name))
    except OSError:
        pass  # not there yet, or damaged
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=folder, prefix=".build-")
    except OSError:  # read-only: this process keeps its library to itself
        temporary = tempfile.TemporaryDirectory(prefix="ddfnet-")
    with temporary as scratch:
        library = Path(scratch) / name
        _compile(compiler, source, defines, library)
        try:
            os.replace(library, folder / name)
            library = folder / name
        except OSError:
            pass
        try:
            return ctypes.CDLL(str(library))  # stays loaded when its file is gone
        except OSError as error:
            raise BuildError(f"the library that {compiler} made cannot be loaded: {error}") from None


def cache_folder() -> Path:
    """$DDFNET_CACHE/native, or ~/.cache/ddfnet/native."""
    root = os.environ.get("DDFNET_CACHE")
    try:
        return (Path(root) if root else Path.home() / ".cache" / "ddfnet") / "native"
    except RuntimeError:  # no home folder
        return Path(tempfile.gettempdir()) / "no-home" / "ddfnet"


def _compiler() -> str:
    if sys.platform == "win32":
        raise BuildError("not built on Windows")
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise BuildError("no C compiler (cc, gcc, clang or $CC) on the PATH")


def _identity(compiler: str) -> str:
    """Changes with an update of the compiler; cheaper than asking it for its version in every process."""
    path = os.path.realpath(compiler)
    status = os.stat(path)
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.release()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return platform.machine() + "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def _compile(compiler: str, source: Path, defines: tuple[str, ...], library: Path) -> None:
    message = ""
    for tuning in _TUNING:
        command = [compiler, *_FLAGS, *tuning, *(f"-D{define}" for define in defines), str(source), "-o", str(library)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"{compiler} could not be run: {error}") from None
        if done.returncode == 0:
            return
        message = message or next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-200:])
    raise BuildError(f"{compiler} fails: {message.strip()}")
