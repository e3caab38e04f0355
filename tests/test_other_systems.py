"""Import and a run on systems that lack what Linux has, such as Windows and macOS: their names are removed."""

import subprocess
import sys

from tests.conftest import ROOT, environment

# What Python has on Linux alone, or not on Windows; and modules that Windows lacks.
NAMES = {
    "os": [
        "fork",
        "sched_getaffinity", "memfd_create", "posix_fallocate", "pread", "preadv", "pwrite", "getuid", "killpg",
        "register_at_fork", "sendfile", "posix_fadvise", "eventfd", "getpgid", "setsid", "pidfd_open", "WIFSIGNALED",
    ],
    "signal": ["SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGBUS", "SIGPIPE", "pthread_sigmask", "SIGCHLD", "SIGALRM"],
    "select": ["poll", "epoll"],
    "mmap": ["MAP_SHARED", "MAP_PRIVATE", "PROT_READ", "PROT_WRITE"],
}  # fmt: skip
MODULES = ["fcntl", "resource", "pwd", "grp", "termios", "triton"]

# Libraries may use them at their own import; what is of interest comes after it.
SCRIPT = """
import importlib, os, pkgutil, sys
import numpy, torch, timm, pydantic, yaml, PIL.Image, safetensors.torch, torch.utils.tensorboard, torch.export
import torch.multiprocessing, torch.distributed, torch._inductor.compile_fx
optional_packages = "torchvision", "pyarrow.parquet", "datasets", "rich.progress", "matplotlib.pyplot", "simplejpeg"
for optional in optional_packages:
    try:
        importlib.import_module(optional)
    except ImportError:
        pass
for module, names in {names!r}.items():
    for name in names:
        vars(importlib.import_module(module)).pop(name, None)
for module in {modules!r}:
    sys.modules[module] = None

assert not hasattr(os, "fork")
import ddfnet
imported = 0
for module in pkgutil.walk_packages(ddfnet.__path__, "ddfnet."):
    if not module.name.endswith("__main__") and not module.name.startswith("ddfnet.kernels."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name != "triton" and "triton" not in module.name:
                raise
        imported += 1
assert imported > 100, imported
from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint
from ddfnet.engine.train import train
from ddfnet.tasks import load_config

overrides = ["data.workers=0", "train.epochs=1", "run.device=cpu", "run.dir={folder}"]
assert train(load_config({config!r}, overrides)) == 0
evaluate_checkpoint("{folder}/best.pt", device="cpu", workers=0)
print("all is well")
"""


def test_nothing_that_windows_lacks_is_needed(tiny_config, tmp_path):
    code = SCRIPT.format(names=NAMES, modules=MODULES, folder=tmp_path / "run", config=str(tiny_config))
    env = {**environment(), "DDFNET_NATIVE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("all is well\n")
    assert (tmp_path / "run" / "best.pt").exists()
