"""Attacks small runs and checks that nothing is lost: the long form of tests/engine/test_resume.py and its kind.

  python scripts/dev/fault_injection.py kills --count 50  # kill -9 of the group, a process, a worker, torchrun
  python scripts/dev/fault_injection.py files --count 45  # damaged checkpoints, records and settings
  python scripts/dev/fault_injection.py disk --count 20  # a disk that gets full (needs root: mounts a tmpfs)
  python scripts/dev/fault_injection.py elastic --count 20  # kills of one process under scripts/train_elastic.sh
  python scripts/dev/fault_injection.py hangs --count 12  # stopped workers and processes, an image that is a FIFO
  python scripts/dev/fault_injection.py nodes --count 5  # two network namespaces as two machines (needs root)
  python scripts/dev/fault_injection.py report --record faults.jsonl  # a table of what was recorded

Each run trains a small network on generated images in a temporary folder, on two processes but for `files` and `disk`.
A killed run is started again and must end with the bits and records of one that was not killed; a damaged folder is a
sentence with exit code 2, or an older checkpoint takes over; a full disk is exit code 74, leaves whole checkpoints, and
with space again the run ends with the same bits; what hangs ends by `run.timeout` with its name, or within 10 seconds
of SIGTERM. Prints a line for each attack. Attack i is the same whichever part of
a series it is run in: `--first 10 --count 10` is the second ten.
Exit code 0: all as it must be; 1: some were not; 2: bad arguments.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ddfnet.checkpoint import read_checkpoint
from ddfnet.engine.run_checkpoints import resumable
from ddfnet.utils import markdown
from ddfnet.utils.cli import HelpFormatter, at_least, run
from ddfnet.utils.errors import CheckpointError, UserError
from ddfnet.utils.files import read_jsonl
from scripts.dev.fault_files import CASES, damage, own_copy
from scripts.dev.fault_hangs import hangs
from scripts.dev.fault_nodes import nodes
from scripts.dev.fault_runs import ROOT, STEPS, Attack, Outcome, append_record, same_records, same_run

VICTIMS = ("the group", "a process", "a worker", "torchrun")


def kills(attack: Attack, index: int) -> Outcome:
    """Kills at a random moment, waits for the end of all processes, and starts the run again."""
    whole, target = attack.whole(), attack.folder / f"killed{index}"
    victim, step = VICTIMS[index % len(VICTIMS)], attack.random.randrange(1, STEPS)
    started = attack.torchrun(target) if victim == "torchrun" else attack.start(target)
    attack.until_step(started, target, step)
    time.sleep(attack.random.random() * 0.1)
    ranks, workers = started.processes()
    if victim == "the group":
        started.kill()
    else:
        chosen = {"a process": ranks, "a worker": workers}.get(victim, [started.pid])
        with suppress(ProcessLookupError, IndexError):  # it was faster, and has ended
            os.kill(attack.random.choice(chosen), signal.SIGKILL)
    ended = started.end()
    for pid in (*ranks, *workers):  # those of a killed torchrun save and end by themselves
        _until_gone(pid)
    code, output = ended if ended[0] == 0 else attack.finish(target)  # a worker is replaced
    same = code == 0 and same_run(target, whole) and same_records(target, whole)
    return Outcome.of(f"{victim} killed", "the same bits and records" if same else None, f"step {step}: {output}")


def _until_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def files(attack: Attack, index: int) -> Outcome:
    """Damages a file of a run that was killed half way, and starts it again."""
    whole, half, target = attack.whole(), attack.folder / "half", attack.folder / f"files{index}"
    if not half.exists():
        started = attack.start(half)
        attack.until_step(started, half, STEPS // 2 + 2)
        started.kill()
        started.end()
    own_copy(half, target)
    file, name, mutate = CASES[index % len(CASES)]
    damage(target, file, mutate, attack.random)
    code, output = attack.finish(target)
    sentence = code == 2 and output.count("error:") == 1
    resumed = code == 0 and same_run(target, whole)
    good = None
    if "Traceback" not in output:
        warned = any(
            words in output for words in ("cannot be used", "is damaged", "has lost its file", "is made again")
        )
        good = "a sentence, exit code 2" if sentence else None
        good = f"the same bits{', and a warning' if warned else ''}" if resumed else good
    return Outcome.of(f"{file}: {name}", good, output)


def disk(attack: Attack, index: int) -> Outcome:
    """Trains on a disk that is too small, or gets full at a random moment; with space again, starts the run again."""
    whole, mount = attack.whole(), attack.folder / "disk"
    mount.mkdir(exist_ok=True)
    size = 8000 + 400 * index if index % 2 else 60000
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(mount)], check=True)
    try:
        started = attack.start(mount / "run")
        kind = f"a disk of {size} kB"
        if index % 2 == 0:
            step, left = attack.random.randrange(1, STEPS), attack.random.randrange(3_000_000)
            attack.until_step(started, mount / "run", step)
            _fill(mount, left)
            kind = f"full but for {left // 1000} kB after step {step}"
        code, output = started.end()
        files_left = list((mount / "run").rglob("*.tmp")) if (mount / "run").exists() else []
        try:
            for path in resumable(mount / "run"):
                read_checkpoint(path)
            intact = not files_left and "Traceback" not in output
        except CheckpointError as error:
            intact, output = False, f"{output} {error}"
        (mount / "filler").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,size=60000k", str(mount)], check=True)
        again, more = attack.finish(mount / "run")
        ok = code in (0, 74) and intact and again == 0 and same_run(mount / "run", whole)
        return Outcome.of(
            kind, f"exit code {code}, checkpoints whole, then the same bits" if ok else None, output + more
        )
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def _fill(mount: Path, left: int) -> None:
    """Takes the space of a disk, all but so many bytes; what the run writes meanwhile leaves less to take."""
    with (mount / "filler").open("wb") as file:
        while (size := shutil.disk_usage(mount).free - left) > 0:
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END) + size)
                return


def elastic(attack: Attack, index: int) -> Outcome:
    """Kills one of two processes, which torchrun has to bring to their end all the same."""
    whole, target = attack.whole(), attack.folder / f"elastic{index}"
    started = attack.launch(target, ["bash", str(ROOT / "scripts/train_elastic.sh")])
    step = attack.random.randrange(1, STEPS - 4)
    attack.until_step(started, target, step)
    ranks, _ = started.processes()
    victim = attack.random.randrange(2)
    if ranks:
        os.kill(ranks[victim % len(ranks)], signal.SIGKILL)
    code, output = started.end()
    same = code == 0 and same_run(target, whole)
    restarted = output.count("resuming from")
    good = f"the same bits, {restarted} restart(s)" if same else None
    return Outcome.of("one of two processes killed", good, f"step {step}: {output}")


ATTACKS = {"kills": kills, "files": files, "disk": disk, "elastic": elastic, "hangs": hangs, "nodes": nodes}


def table(path: Path) -> str:
    """What was recorded in a file, as a table; an attack that was run again counts as it ended last."""
    last = {(record["attack"], record["seed"], record["index"]): record for record in read_jsonl(path)}
    lines = []
    for name in ATTACKS:
        records = [record for (attack, *_), record in sorted(last.items()) if attack == name]
        if not records:
            continue
        good = sum(record["ok"] for record in records)
        seconds = sum(record["seconds"] for record in records)
        lines.append(f"\n## {name}: {good} of {len(records)} as they must be, {seconds:.0f} s\n")
        counted = Counter((record["kind"], record["what"].partition("\n")[0]) for record in records)
        rows = [[kind, what, str(number)] for (kind, what), number in counted.items()]
        lines.append(markdown.table(["attack", "outcome", "times"], rows))
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="fault_injection.py", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("attack", choices=[*ATTACKS, "report"])
    parser.add_argument("--first", type=at_least(0), default=0, help="number of the first attack (default 0)")
    parser.add_argument("--count", type=at_least(1), default=10, help="default %(default)s")
    parser.add_argument("--workers", type=at_least(0), default=1, help="data.workers (default %(default)s)")
    parser.add_argument("--processes", type=at_least(1), help="of each run (default: 2; files and disk: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, metavar="FILE", help="add a line of JSON for each attack to this file")
    options = parser.parse_args(arguments)
    if options.attack == "report":
        if options.record is None or not options.record.is_file():
            raise UserError("report needs --record FILE, which attacks have written")
        print(table(options.record))
        return 0
    if sys.platform != "linux":
        raise UserError("the attacks need Linux: processes are found in /proc")
    processes = options.processes or (1 if options.attack in ("files", "disk", "hangs") else 2)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="fault_injection.") as folder, ExitStack() as stack:
        attack = Attack(Path(folder), workers=options.workers, processes=processes, seed=options.seed)
        stack.callback(attack.close)
        for index in range(options.first, options.first + options.count):
            attack.begin(index)
            start = time.monotonic()
            outcome = ATTACKS[options.attack](attack, index)
            facts = {"attack": options.attack, "seed": options.seed, "index": index, **vars(outcome)}
            failed += not outcome.ok
            print(f"{options.attack} {index}: {outcome.kind}: {outcome.what}", flush=True)
            if options.record is not None:
                append_record(options.record, {**facts, "seconds": round(time.monotonic() - start, 1)})
    print(f"{options.count - failed} of {options.count} as they must be")
    return 1 if failed else 0


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
