"""One process, torchrun or SLURM: the same code; NCCL on GPUs, gloo on CPUs."""

import gc
import inspect
import os
import signal
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ddfnet.utils.errors import UserError
from ddfnet.utils.memory import keep_freed_memory
from ddfnet.utils.parent import signal_when_parent_ends
from ddfnet.utils.text import plural

_STORE_SECONDS = 60.0  # for an answer of the store to a thread that asks it

# torch 2.15 renamed the argument and warns of the old name.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
LOCAL_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


@dataclass(frozen=True)
class Distributed:
    """This process among all: its rank, its device, and the few collectives the engine needs."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def reduce_(self, tensor: Tensor, op: Literal["sum", "min", "max"]) -> Tensor:
        """The sum, smallest or largest value of each element over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor, getattr(dist.ReduceOp, op.upper()))
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """Stacks the tensors of all processes: (...) -> (world_size, ...), on every process."""
        if self.world_size == 1:
            return tensor[None].clone()
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, on every process; tensors in them must be on the CPU."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def store(self, name: str) -> dist.Store:
        """A connection of its own to the store of the process group, with keys of its own: for other threads."""
        return dist.PrefixStore(name, _connect(timedelta(seconds=_STORE_SECONDS), serve=False))


@contextmanager
def distributed_session(device: str = "auto", timeout: float = 1800.0) -> Iterator[Distributed]:
    """Joins the process group that the environment describes (torchrun, srun), and leaves it at the end.

    Args:
        device: `auto` (cuda where there is one), `cuda`, `cpu` or `mps`.
        timeout: seconds that processes wait for each other; a little more, so that a `Watch` speaks first.

    Raises:
        UserError: cuda or mps was asked for and is not there, or there are more processes than GPUs on this machine.
    """
    rank, world_size, local_rank, local_world_size = _position()
    chosen = _apple_gpu(world_size) if device == "mps" else _pick_device(device, local_rank, local_world_size)
    # Of 1 x 1 convolutions in channels_last; the copy it speaks of costs next to nothing.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    elif chosen.type == "cpu":
        keep_freed_memory()
    if world_size > 1:
        if "TORCHELASTIC_RUN_ID" in os.environ:  # a launcher that was killed must not leave its processes training
            signal_when_parent_ends(signal.SIGTERM, os.getppid())
        wait = timedelta(seconds=timeout + 60)
        dist.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo",
            store=_connect(wait, serve=rank == 0),
            rank=rank,
            world_size=world_size,
            timeout=wait,
            device_id=chosen if chosen.type == "cuda" else None,
        )
    yield Distributed(rank, world_size, chosen)
    # Not in a `finally`: leaving waits for the other processes, and one that has failed must end, so that the launcher
    # sees it and ends the others.
    if dist.is_initialized():
        # DDP refers to itself, and to the group: its threads would live until Python ends, and abort the process where
        # one of them then waits for Python's lock. The group's last reference is that of PyTorch, which frees the lock.
        gc.collect()
        dist.destroy_process_group()


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error is that of a collective operation or of the store, another process of which has gone."""
    known = isinstance(error, dist.DistBackendError | dist.DistNetworkError | dist.DistStoreError)
    return known or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def _connect(timeout: timedelta, *, serve: bool) -> dist.Store:
    """The store over which the processes find each other, at MASTER_ADDR and MASTER_PORT.

    Under torchrun it may live through restarts: each has keys of its own, or processes would meet those of processes
    that have ended, and wait for them.
    """
    env = os.environ
    agent = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun serves it
    for key in ("MASTER_ADDR", "MASTER_PORT"):
        if key not in env:
            raise UserError(f"RANK and WORLD_SIZE are set, {key} is not: start the processes with torchrun or srun")
    address, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    store = dist.TCPStore(
        address, port, is_master=serve and not agent, timeout=timeout, wait_for_workers=False, multi_tenant=True
    )
    return dist.PrefixStore(f"ddfnet/restart{env.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _position() -> tuple[int, int, int, int]:
    """(rank, world size, local rank, local world size) from the environment."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        world_size = int(env["WORLD_SIZE"])
        local_world_size = int(env.get("LOCAL_WORLD_SIZE", world_size))
        return int(env["RANK"]), world_size, int(env.get("LOCAL_RANK", env["RANK"])), local_world_size
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # inside srun, not merely inside an allocation
        tasks_here = int(env.get("SLURM_STEP_TASKS_PER_NODE", env["SLURM_STEP_NUM_TASKS"]).split("(")[0].split(",")[0])
        if "MASTER_ADDR" not in env:
            nodes = ["scontrol", "show", "hostnames", env["SLURM_STEP_NODELIST"]]
            env["MASTER_ADDR"] = subprocess.run(nodes, capture_output=True, text=True, check=True).stdout.split()[0]
        env.setdefault("MASTER_PORT", str(20_000 + int(env["SLURM_JOB_ID"]) % 10_000))
        env["LOCAL_WORLD_SIZE"] = str(tasks_here)  # as torchrun does: loader processes are counted by it
        return int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"]), tasks_here
    return 0, 1, 0, 1


def _apple_gpu(world_size: int) -> torch.device:
    if not torch.backends.mps.is_available():
        fix = "use run.device=cpu (train.py) or --device cpu (eval.py)"
        raise UserError(f"device mps was asked for, but PyTorch has no Metal device here: {fix}")
    if world_size > 1:
        raise UserError("device mps takes one process: start without torchrun, or use the CPU (run.device=cpu)")
    return torch.device("mps")


def device_name(device: torch.device) -> str:
    """How a device is called in logs."""
    return {"cuda": torch.cuda.get_device_name, "mps": lambda: "Apple GPU (mps)"}.get(device.type, lambda: "CPU")()


def mps_notes(device: torch.device) -> list[str]:
    """What to know of a Mac's GPU, one line each; none for other devices."""
    if device.type != "mps":
        return []
    if os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == "1":
        return ["note: operations that Metal lacks run on the CPU, slowly (PYTORCH_ENABLE_MPS_FALLBACK=1)"]
    return [
        "note: operations that Metal lacks end the run with NotImplementedError: set PYTORCH_ENABLE_MPS_FALLBACK=1 "
        "before the start, and they run on the CPU"
    ]


def _pick_device(device: str, local_rank: int, local_world_size: int) -> torch.device:
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        fix = "use run.device=cpu (train.py) or --device cpu (eval.py)"
        raise UserError(f"device cuda was asked for, but PyTorch sees no GPU: {fix}")
    if "SLURM_LOCALID" in os.environ and torch.cuda.device_count() == 1:  # srun --gpus-per-task=1: each sees its own
        return torch.device("cuda", 0)
    if local_world_size > torch.cuda.device_count():  # the same answer on every process
        raise UserError(
            f"{local_world_size} processes were started on this machine, which has "
            f"{plural(torch.cuda.device_count(), 'GPU')}: start torchrun with --nproc-per-node "
            f"{torch.cuda.device_count()}, or use the CPU: run.device=cpu (train.py), --device cpu (eval.py)"
        )
    return torch.device("cuda", local_rank)
