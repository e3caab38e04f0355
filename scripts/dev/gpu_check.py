"""The parts of `bash scripts/gpu_check.sh OUTDIR [full|quick]`, which starts this: tests, benchmarks, and a summary."""

import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

START = time.monotonic()
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from a checkout without `pip install`

import torch

from ddfnet.utils import markdown
from ddfnet.utils.environment import environment

TESTS = "-m pytest tests/gpu -m gpu -v --tb=short --durations=15 --continue-on-collection-errors -p no:cacheprovider"
if importlib.util.find_spec("xdist"):
    workers = min(max((os.cpu_count() or 1) // 2, 1), 8)
    TESTS += f" -n {os.environ.get('GPU_CHECK_WORKERS', workers)} --dist loadgroup"
if importlib.util.find_spec("pytest_timeout"):
    TESTS += " --timeout 120"
OP = "scripts/benchmarks/op.py --keep-caches --budget 0.2"
MODEL = "scripts/benchmarks/model.py --keep-caches --models ddf_mul_resnet50 resnet50"
UNFUSED = "ddf_mul_resnet50:fused_norms=none"  # what inference gains from normalizing in the layer's kernels
# Training with the same, which no GPU has run.
TRAINED = "scripts/benchmarks/model.py --keep-caches --baseline ddf_mul_resnet50"
TRAINED += " --models ddf_mul_resnet50:fused_norms=all ddf_mul_resnet50"
COMPILED = "--keep-caches --modes compiled --batch 256"
# Seconds and commands of each part; several commands run at once. What tells most comes first: a part gets its own
# limit or the seconds that are left, whichever is less. Tests are named one by one (-v), so that a cut leaves a list of
# those that passed; a file that cannot be imported must not stop the others, nor long traces fill the log. The eager
# models compile all kernels ahead, in parallel, into the cache that the parts share; a profile of one step says what
# the device does, and whether it waits for the host, which on an H200 it did. Models are compiled side by side before
# they are measured: one after the other, two minutes were not enough for them there.
PARTS = {
    "tests": (180, TESTS),
    "op": (60, f"{OP} --skip-compiled"),
    "model_eager": (80, f"{MODEL} {UNFUSED} --modes eager --batch 256 --torch-profile 1"),
    "model_norms": (40, f"{TRAINED} --modes eager --batch 256 --torch-profile 1"),
    "compile": (
        *(130, f"scripts/benchmarks/model.py --models ddf_mul_resnet50 {COMPILED} --steps 1 --warmup 1"),
        f"scripts/benchmarks/model.py --models resnet50 {COMPILED} --steps 1 --warmup 1",
    ),
    "model_compiled": (60, f"{MODEL} --modes compiled --batch 256"),
    "model_eager_64": (40, f"{MODEL} --modes eager --batch 64"),
    "model_graph": (40, f"{MODEL} --modes eager graph --batch 8"),
    "host": (40, "scripts/dev/host_time.py --profile"),
    "tiles": (60, "scripts/benchmarks/tiles.py"),
    "op_compiled": (60, f'{OP} --only "ddf,ddf compiled,shifted compiled"'),
    "norms_compiled": (80, f"{TRAINED} --modes compiled --batch 256"),
    "op_shapes": (60, f"{OP} --skip-compiled --shapes table2 --shapes tableA"),
}
# Seconds in all, and the parts in order.
PROFILES = {"full": (465, list(PARTS)), "quick": (235, ["model_eager", "model_norms", "model_graph", "tests", "host"])}


def run_part(name: str, limit: int, commands: list[list[str]], total: int) -> dict[str, Any]:
    """Runs a part within `limit` seconds, and `total` since the start; its row of the summary."""
    began = time.monotonic()
    limit = min(limit, int(START + total - began))
    text = " & ".join(shlex.join(["python", *command]) for command in commands)
    print(f"\n=== {name} (at most {limit} s): {text}", flush=True)
    # SIGINT first: pytest and the benchmarks then still write what they have.
    timeout = ["timeout", "--signal=INT", "--kill-after=15", str(limit), sys.executable]
    code = _run(*([*timeout, *command] for command in commands)) if limit >= 5 else None
    seconds = time.monotonic() - began
    result = "not run" if code is None else "passed" if code == 0 else "cut" if seconds >= limit else f"failed ({code})"
    return {"part": name, "result": result, "seconds": round(seconds), "tests": "", "command": text}


def _run(*commands: list[str]) -> int:
    """Runs commands at once; the first exit code that is not 0."""
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": sys.stdout, "stderr": sys.stdout}
    processes = [subprocess.Popen(command, **streams) for command in commands]
    return next(filter(None, [process.wait() for process in processes]), 0)


def read_tests(report: Path, row: dict[str, Any]) -> list[str]:
    """Puts the counts of pytest's report into the row of the tests; a line for each test that failed."""
    if not report.exists():
        return []
    suites = xml.etree.ElementTree.parse(report).getroot()
    keys = ("tests", "failures", "errors", "skipped")
    row["tests"] = ", ".join(f"{sum(int(suite.get(key, 0)) for suite in suites)} {key}" for key in keys)
    lines = []
    for case in suites.iter("testcase"):
        for fault in [*case.findall("failure"), *case.findall("error")]:
            row["result"] = "failed"  # even if it was cut
            message = (fault.get("message") or "").replace("\n", " ")[:300]
            lines.append(f"- {case.get('classname')}::{case.get('name')}: {message}")
    return lines


def main(out: Path, profile: str = "full") -> int:
    """Runs the parts of a profile and writes the summary; returns the exit code."""
    total, names = PROFILES[profile]
    if not torch.cuda.is_available():
        print("gpu_check: no CUDA device found; nothing was run", file=sys.stderr)
        return 2
    results, report = out / "benchmarks", out / "tests.xml"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    for earlier in (report, *(out / name for name in ("summary.json", "summary.md", "benchmarks.tar.gz"))):
        earlier.unlink(missing_ok=True)
    os.chdir(ROOT)
    with (
        tempfile.TemporaryDirectory() as caches,
        subprocess.Popen(["tee", str(out / "gpu_check.log")], stdin=subprocess.PIPE, text=True) as log,
        contextlib.redirect_stdout(log.stdin),
    ):
        # One folder for all parts: a kernel is compiled once.
        os.environ |= {"TRITON_CACHE_DIR": f"{caches}/triton", "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor"}
        os.environ |= {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "PYTHONUNBUFFERED": "1"}
        print(json.dumps(environment(), indent=1), flush=True)
        _run(["sh", "-c", "nvidia-smi"])
        rows = []
        for name in names:
            limit, *texts = PARTS[name]
            commands = [shlex.split(text) for text in texts]
            for command, suffix in zip(commands, ("", "_2"), strict=False):  # each into a folder of its own
                output = ["--junitxml", str(report)] if name == "tests" else ["--output", str(results / name) + suffix]
                command += output
            rows.append(run_part(name, limit, commands, total))
        failures = read_tests(report, rows[names.index("tests")])
        head = f"# GPU check on {torch.cuda.get_device_name()}, PyTorch {torch.__version__}"
        table = markdown.table(list(rows[0]), (row.values() for row in rows))
        text = f"{head}\n\n{table}\nCut: out of time; what was measured until then is kept.\n\n" + "\n".join(failures)
        print(f"\n{text}")
    pages = [page.read_text() for row in rows for page in results.glob(f"{row['part']}/*.md")]
    (out / "summary.md").write_text("\n".join([text, *pages]))
    summary = {"environment": environment(), "parts": rows, "failures": failures}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    with tarfile.open(out / "benchmarks.tar.gz", "w:gz") as archive:
        archive.add(results, "benchmarks")
    shutil.rmtree(results)
    return int(any(row["result"].startswith("failed") for row in rows))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2]))
