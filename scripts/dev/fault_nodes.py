"""Two network namespaces as two machines, and what happens to a network: the attack `nodes` of fault_injection.py."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ddfnet.utils.errors import UserError
from ddfnet.utils.files import read_jsonl
from scripts.dev.fault_runs import ROOT, Attack, Outcome, Run, descendants, same_run

RUN_TIMEOUT = 8
LATEST = RUN_TIMEOUT + 6  # seconds; as for processes that hang
LATEST_RESET = 8.0  # where the kernel of the machine tells of the end of its processes
LONGEST_LAUNCHER = 30  # seconds
DOWN_SECONDS = 15
NETWORK = "10.231.7"
KINDS = (
    "the link is down for 15 s",
    "the second machine loses its processes",
    "the second machine is gone, without a word",
    "the first machine is gone, without a word",
    "the first machine loses its processes",
)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def can_make_namespaces() -> bool:
    """Whether this process may make network namespaces: by trying."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        with _namespaces():
            return True
    except (subprocess.CalledProcessError, OSError):
        return False


@contextmanager
def _namespaces() -> Iterator[list[tuple[str, str]]]:
    """Name and link of two machines, with addresses NETWORK.1 and NETWORK.2."""
    both = [(f"ddf{os.getpid()}{letter}", f"d{os.getpid()}{letter}") for letter in "ab"]
    try:
        for name, _ in both:
            _ip("netns", "add", name)
        _ip("link", "add", both[0][1], "netns", both[0][0], "type", "veth", "peer", both[1][1], "netns", both[1][0])
        for number, (name, link) in enumerate(both, 1):
            _ip("-n", name, "address", "add", f"{NETWORK}.{number}/24", "dev", link)
            _ip("-n", name, "link", "set", link, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield both
    finally:
        for name, _ in both:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", name)


def nodes(attack: Attack, index: int) -> Outcome:
    """Trains over two machines as the guide says, while something happens to the network or to one of them."""
    if not can_make_namespaces():
        raise UserError("nodes needs root, and a system on which `ip netns add` works")
    kind, target = KINDS[index % len(KINDS)], attack.folder / f"nodes{index}"
    whole = attack.whole()  # of two processes on one machine
    cuts = index % len(KINDS) == 0
    keys = [] if cuts else ["train.epochs=3000", "run.save_every=100", f"run.timeout={RUN_TIMEOUT}"]
    with _namespaces() as both:
        runs = [_start(attack, target, machine, keys) for machine in both]
        try:
            reached = attack.until_step(runs[0], target, attack.random.randrange(5, 12))
            if cuts:
                return _cut(both, runs, target, whole, reached)
            time.sleep(2.5)  # for the processes to have heard of each other
            return _lose(kind, both, runs)
        finally:
            for started in runs:
                started.kill()
                started.end()


def _start(attack: Attack, target: Path, machine: tuple[str, str], keys: list[str]) -> Run:
    name, link = machine
    launcher = ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={link}", sys.executable]
    launcher += ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{NETWORK}.1:29500"]
    # Machines know themselves by their names, which namespaces share.
    number = 1 if name.endswith("a") else 2
    launcher += ["--rdzv-conf", f"is_host={int(number == 1)}", "--local-addr", f"{NETWORK}.{number}"]
    return attack.launch(target, [*launcher, str(ROOT / "train.py")], *keys)


def _cut(both: list[tuple[str, str]], runs: list[Run], target: Path, whole: Path, reached: bool) -> Outcome:
    name, link = both[0]
    _ip("-n", name, "link", "set", link, "down")
    time.sleep(2)
    before = len(read_jsonl(target / "metrics.jsonl"))
    time.sleep(DOWN_SECONDS - 2)
    stood = len(read_jsonl(target / "metrics.jsonl")) == before and runs[0].poll() is None
    _ip("-n", name, "link", "set", link, "up")
    ends = [started.end() for started in runs]
    same = reached and stood and [code for code, _ in ends] == [0, 0] and same_run(target, whole)
    failed = f"reached {reached}, stood still {stood}: {ends[0][1][-700:]} {ends[1][1][-700:]}"
    return Outcome.of(KINDS[0], "the same bits as on one machine" if same else None, failed)


def _lose(kind: str, both: list[tuple[str, str]], runs: list[Run]) -> Outcome:
    lost = 0 if "first" in kind else 1
    survivor = 1 - lost
    ranks, _ = runs[survivor].processes()
    silent = "without a word" in kind
    if silent:
        name, link = both[lost]
        _ip("-n", name, "link", "set", link, "down")
    start = time.monotonic()
    for pid in [runs[lost].pid, *descendants(runs[lost].pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while any(Path(f"/proc/{pid}/fd/0").exists() for pid in ranks) and time.monotonic() - start < 60:
        time.sleep(0.05)
    seconds = time.monotonic() - start
    while runs[survivor].poll() is None and time.monotonic() - start < LONGEST_LAUNCHER:
        time.sleep(0.1)
    launcher = time.monotonic() - start
    ended = runs[survivor].poll() is not None
    runs[survivor].kill()  # a torchrun whose store was on the other machine asks it for minutes
    code, output = runs[survivor].end()
    words = "does not answer" if silent else "the connection to another process is lost"
    named = words in output and "Traceback" not in output.partition("torch/distributed/elastic")[0]
    ok = bool(ranks) and (code == 1 or not ended) and named and seconds <= (LATEST if silent else LATEST_RESET)
    how = f"ended in {seconds:.1f} s" + (f" with run.timeout={RUN_TIMEOUT}" if silent else "")
    how += f", torchrun in {launcher:.0f} s" if ended else f", torchrun not in {LONGEST_LAUNCHER} s"
    return Outcome.of(kind, how if ok else None, f"exit code {code}; {how}: {output}")
