"""Every block of docs/guides is run: commands, Python, configurations, and what they print.

The language of a fenced block, and a comment in the line before it (`<!-- test: WORDS -->`, invisible to readers), say
how. A block without a rule fails. Blocks of a page run in order, in one folder that looks like a checkout with the
digits in `data/digits`; few of them, so that an epoch takes a second.

| block | rule |
| --- | --- |
| bash | run; all commands must succeed |
| bash, `resolve` | needs ImageNet, GPUs or much time: options, keys and values are checked, nothing is run |
| bash, `interpreter` | run where Triton's interpreter works |
| python | run, in a process of its own |
| yaml, `file NAME` | written to NAME, and loaded with the other words as overrides |
| text | lines that the block before it printed; numbers may differ, `...` is anything |
| text, `message NAME` | what the command NAME of `PROVOKED` prints, word for word but for `...` |
| text, `layout` | files that `index_folder` and `check_data.py` accept when they are there |
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, draw, environment
from tests.processes import end, python_for_shells, start_forked

GUIDES = ROOT / "docs" / "guides"
# Tested beside what they describe: test_export.py, test_interop.py, tests/tasks.
ELSEWHERE = {"export.md", "interop.md", "tasks.md"}
PAGES = sorted({path.name for path in GUIDES.glob("*.md")} - ELSEWHERE)
BLOCK = re.compile(
    r"^(?:<!-- test: (?P<how>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
# What a `resolve` block may name besides our own commands.
OTHERS = {"cp", "echo", "export", "gdown", "if", "fi", "mkdir", "pip", "sbatch", "scontrol", "scp", "source"}
OTHERS |= {"tensorboard"}
REAL = shlex.quote(sys.executable)


def blocks(text):
    """(how, language, text) of each fenced block, in order."""
    return [(match["how"] or "", match["language"], match["text"]) for match in BLOCK.finditer(text)]


def commands(text):
    """Lines of a shell script with continued ones joined, without comments and empty ones."""
    lines = re.sub(r" *\\\n\s*", " ", text).splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def run_python(arguments, folder, variables=None):
    """(exit code, output) of `python ARGUMENTS` in a folder, with environment variables besides the usual ones."""
    output = folder / ".output"
    output.unlink(missing_ok=True)
    process = start_forked(arguments, {**environment(), **(variables or {})}, str(output), str(output), folder)
    process.join(240)
    if process.exitcode is None:
        end(process)
        pytest.fail(f"still running: {arguments}")
    return process.exitcode, output.read_text()


def run_bash(text, folder):
    """(exit code, output) of a shell script in a folder; the first command that fails ends it."""
    programs = folder / ".bin"
    programs.mkdir(exist_ok=True)
    with python_for_shells() as python:
        for name, program in (("python", python), ("torchrun", f"{REAL} -m torch.distributed.run")):
            path = programs / name  # a program and not a function: `$!` has to be its process
            path.write_text(f'#!/bin/sh\n[ "$1" = - ] && exec {REAL} "$@"\nexec {program} "$@"\n')
            path.chmod(0o755)
        result = subprocess.run(
            ["bash", "-e", "-c", text], cwd=folder,
            env={**environment(), "PATH": f"{programs}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240, check=False,
        )  # fmt: skip
    return result.returncode, result.stdout


def run(text, folder):
    """(exit code, output) of a bash block; lines that only start Python are forked."""
    lines = commands(text)
    if not all(re.match(r"(\w+=\S+ )*python ", line) and not set(line) & set("|&;<>$`") for line in lines):
        return run_bash(text, folder)
    printed = ""
    for line in lines:
        words = shlex.split(line, comments=True)
        start = words.index("python")
        variables = dict(word.split("=", 1) for word in words[:start])
        code, output = run_python(words[start + 1 :], folder, variables)
        printed += output
        if code:
            return code, printed
    return 0, printed


def resolve(line):
    """Checks a command that cannot be run here: options, configuration keys and values, files of this repository.

    Raises:
        AssertionError, SystemExit, UserError: it would be refused.
    """
    words = shlex.split(line, comments=True)
    if words[0] == "srun":
        words = words[next(i for i, word in enumerate(words) if i and not word.startswith("-")) :]
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        parsed = get_args_parser().parse_args(words[1:])
        words = ["python", parsed.training_script, *parsed.training_script_args]
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file(), f"{line}: no such script"
    elif words[0] != "python":
        assert words[0] in OTHERS, f"{line}: no rule for {words[0]}"
    elif words[1:3] == ["-m", "ddfnet.zoo"]:
        from ddfnet.__main__ import zoo_arguments
        from ddfnet.zoo import find

        parsed = zoo_arguments(words[3:])
        if parsed.command in ("info", "download"):
            find(parsed.name)
    elif words[1] in ("train.py", "eval.py"):
        _resolve_ours(words[1:])
    else:
        options = [word for word in words[2:] if word.startswith("--")]
        source = "".join(path.read_text() for path in (ROOT / words[1]).parent.glob("*.py"))  # common.py has some
        assert all(f'"{option}"' in source for option in options), f"{line}: an option that {words[1]} does not have"


def _resolve_ours(words):
    from ddfnet.tasks import load_config
    from ddfnet.zoo import find

    sys.argv = words  # of a forked process
    parsed = runpy.run_path(str(ROOT / words[0]))["parse_arguments"]()
    if words[0] == "train.py":
        load_config(ROOT / parsed.config, parsed.overrides)
    elif parsed.checkpoint.startswith("zoo:"):
        find(parsed.checkpoint.removeprefix("zoo:"))


def resolve_block(text, folder):
    assert subprocess.run(["bash", "-n", "-c", text], check=False).returncode == 0, "the shell cannot read it"
    check = f"from tests.test_guides import resolve\nfor line in {commands(text)!r}:\n    resolve(line)"
    code, output = run_python(["-c", check], folder)
    assert code == 0, output


def masked(text):
    """Text with spaces and numbers made alike: those of the digits of the tests are others. Exit codes stay."""
    return re.sub(r"(?<!exit code )(?<!\d)\d[\d,.]*", "#", " ".join(text.split()))


def pattern(text):
    return ".*?".join(re.escape(part) for part in text.split("..."))


def check_lines(text, output):
    """Each line of a block was printed, in this order."""
    lines = [masked(line) for line in text.splitlines() if line.strip() and line.strip() != "..."]
    printed = "\n".join(masked(line) for line in output.splitlines())
    assert re.search(".*?".join(map(pattern, lines)), printed, re.DOTALL), f"expected\n{text}\nprinted\n{output}"


def check_layout(text, folder):
    """The tree of files that a block lists can be trained on."""
    from ddfnet.data.check import check_tree
    from ddfnet.data.sources.folder import index_folder

    root = folder / "layout"
    for line in text.split():
        path = root / line.removeprefix("/data/imagenet/")
        path.parent.mkdir(parents=True, exist_ok=True)
        draw("disc", np.random.default_rng(0)).save(path, "JPEG")
    train = index_folder(root / "train")
    assert len(index_folder(root / "val", classes=train.classes)) == len(train)
    assert not check_tree(root).problems


DEMO = "python train.py --config configs/demo.yaml"
WITHOUT = """import runpy, sys
sys.modules[{0!r}], sys.argv = None, [{1!r}, *{2!r}]
runpy.run_path({1!r}, run_name="__main__")
"""
PROVOKED = {
    "unknown_key": f"{DEMO} optim.lrr=1 train.epochs=0",
    "batch": f"{DEMO} train.device_batch_size=24",
    "model_name": f"{DEMO} model.name=ddf_resnet50 run.dir=runs/new",
    "no_data": f"{DEMO} data.root=data/none run.dir=runs/new",
    "flat": f"{DEMO} data.root=data/flat run.dir=runs/new",
    "classes_differ": f"{DEMO} data.root=data/missing run.dir=runs/new",
    "corrupt_image": f"{DEMO} data.root=data/corrupt train.batch_size=40 train.device_batch_size=20 train.epochs=1 "
    "run.dir=runs/corrupt",
    "many_corrupt": f"{DEMO} data.root=data/many train.epochs=3 run.dir=runs/many",
    "other_configuration": f"{DEMO} train.epochs=3 run.dir=runs/again",
    "other_epochs": f"{DEMO} train.epochs=3 run.dir=runs/demo",
    "other_model": f"{DEMO} model.init_checkpoint=runs/demo/best.pt model.name=resnet14_32px run.dir=runs/new",
    "no_model": "python eval.py --checkpoint bare.pt --data data/digits",
    "cut": "python eval.py --checkpoint cut.pt --data data/digits",
    "unsafe": "python eval.py --checkpoint unsafe.pt --data data/digits --model ddf_mul_resnet14_32px",
    "not_finite": f"{DEMO} optim.lr=1e30 optim.name=sgd schedule.warmup_epochs=0 run.log_every=1 run.dir=runs/nan",
    "no_gpu": f"{DEMO} run.device=cuda run.dir=runs/new",
    "port": f"RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=PORT {DEMO} run.dir=runs/new",
    "no_matplotlib": WITHOUT.format("matplotlib", "scripts/visualize", ["curves", "runs/demo"]),
    "no_sklearn": WITHOUT.format("sklearn", "scripts/make_data.py", ["digits", "data/other"]),
    "changed_file": "DDFNET_CACHE=data/page python -m ddfnet.zoo download ddf_mul_resnet50.official_in1k",
}


def image_folders(root, classes, count, rng):
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            draw(("cross", "disc", "grid", "ring", "stripes")[int(name) % 5], rng, 32).save(root / name / f"{i}.png")


@pytest.fixture
def checkout(tmp_path):
    """A folder that looks like a checkout with the digits, but few of them."""
    for name in ("train.py", "eval.py", "ddfnet", "docs", "kernels", "scripts", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    rng, classes = np.random.default_rng(0), "0123456789"
    digits = tmp_path / "data" / "digits"
    image_folders(digits / "train", classes, 4, rng)
    image_folders(digits / "val", classes, 2, rng)
    made = {"parameters": {"size": 32, "val_fraction": 0.2, "seed": 0}, "counts": {"train": 40, "val": 20}}
    (digits / "digits.json").write_text(json.dumps(made))  # then make_data.py keeps them
    return tmp_path


def awkward_data(folder):
    """The data that the messages of a page are about."""
    data, digits = folder / "data", folder / "data" / "digits"
    for name in ("corrupt", "many", "missing"):
        shutil.copytree(digits, data / name)
    (data / "corrupt" / "train" / "3" / "0.png").write_text("no image")
    for path in sorted((data / "many" / "train").glob("[0-5]/[01].png")):
        path.write_text("no image")
    shutil.rmtree(data / "missing" / "val" / "9")
    for split in ("train", "val"):
        shutil.copytree(digits / split / "3", data / "flat" / split)
    (data / "page").mkdir()
    (data / "page" / "ddf_mul_resnet50.official_in1k.pth.tar").write_text("<!doctype html>")


def awkward_checkpoints(folder):
    """The checkpoints that the messages of a page are about."""
    code, output = run(f"{DEMO} train.epochs=1", folder)
    assert code == 0, output
    state = torch.load(folder / "runs/demo/best.pt", weights_only=True)["model"]
    torch.save(state, folder / "bare.pt")
    (folder / "cut.pt").write_bytes((folder / "bare.pt").read_bytes()[:1000])
    torch.save({"state_dict": state, "path": Path("x")}, folder / "unsafe.pt")


def provoke(name, folder):
    """What the command of a message prints."""
    command = PROVOKED[name]
    if command.startswith("import "):
        return run_python(["-c", command], folder)[1]
    with socket.socket() as busy:
        busy.bind(("", 0))
        busy.listen()
        return run(command.replace("PORT=PORT", f"PORT={busy.getsockname()[1]}"), folder)[1]


def interpreter_works():
    """Not without Triton, and not that of Triton 3.6 with numpy 2.4, as in tests/kernels/test_interpreter.py."""
    if importlib.util.find_spec("triton") is None:
        return False
    triton, numpy = ([int(part) for part in importlib.metadata.version(p).split(".")[:2]] for p in ("triton", "numpy"))
    return triton >= [3, 7] or numpy < [2, 4]


def check_block(how, language, text, before, folder):
    """Tests one block; returns what it printed. `before`: what the last one printed, None if it cannot run here."""
    rule, *words = how.split() or [""]
    if rule == "interpreter" and not interpreter_works():
        return None
    if (language, rule) in (("bash", ""), ("bash", "interpreter"), ("python", "")):
        code, output = run_python(["-c", text], folder) if language == "python" else run(text, folder)
        assert code == 0, f"exit code {code} of\n{text}\nprinted\n{output}"
        return output
    if (language, rule) == ("bash", "resolve"):
        resolve_block(text, folder)
    elif (language, rule) == ("yaml", "file"):
        from ddfnet.tasks import load_config

        (folder / words[0]).write_text(text)
        load_config(folder / words[0], words[1:])
    elif (language, rule) == ("text", ""):
        if before is not None:
            check_lines(text, before)
    elif (language, rule) == ("text", "message"):
        printed = provoke(words[0], folder)
        assert re.search(pattern(text.strip()), printed, re.DOTALL), f"expected\n{text}\nprinted\n{printed}"
    elif (language, rule) == ("text", "layout"):
        check_layout(text, folder)
    else:
        pytest.fail(f"no rule says how to test this block ({language}, {how!r}):\n{text}")
    return before


@pytest.mark.parametrize("page", PAGES)
def test_blocks_of_the_guides(page, checkout):
    found = blocks((GUIDES / page).read_text())
    assert found
    needed = {PROVOKED[how.split()[1]] for how, _, _ in found if how.startswith("message")}
    if any("data/" in command for command in needed):
        awkward_data(checkout)
    if any("runs/demo" in command for command in needed):
        awkward_checkpoints(checkout)
    printed = ""
    for how, language, text in found:
        printed = check_block(how, language, text, printed, checkout)


def test_every_fence_is_a_block():
    """A fence that the expression overlooks would go untested."""
    for page in PAGES:
        text = (GUIDES / page).read_text()
        assert len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)) == 2 * len(blocks(text)), page


def test_a_block_without_a_rule_fails(checkout):
    for how, language in (("", "sh"), ("skip", "bash"), ("", "yaml"), ("", ""), ("resolve", "python")):
        with pytest.raises(pytest.fail.Exception, match="no rule"):
            check_block(how, language, "true", "", checkout)


@pytest.mark.parametrize(
    ("language", "how", "text"),
    [
        ("bash", "", "python train.py --config configs/none.yaml"),
        ("bash", "", "false; true"),
        ("bash", "resolve", "python train.py --config configs/demo.yaml optim.lrr=1"),
        ("bash", "resolve", "torchrun --nprocs 2 train.py --config configs/demo.yaml"),
        ("bash", "resolve", "python eval.py --checkpoint zoo:nothing"),
        ("bash", "resolve", "python scripts/check_data.py data --everything"),
        ("bash", "resolve", "wget https://example.org"),
        ("python", "", "raise SystemExit(1)"),
        ("text", "", "printed nothing of this"),
        ("text", "message no_data", "train.py: error: something else"),
    ],
)
def test_a_wrong_block_fails(language, how, text, checkout):
    with pytest.raises(AssertionError):
        check_block(how, language, text, "what was printed", checkout)


def test_every_provoked_message_is_quoted():
    quoted = {how.split()[1] for page in PAGES for how, _, _ in blocks((GUIDES / page).read_text()) if "message" in how}
    assert quoted == PROVOKED.keys()


@pytest.mark.parametrize("page", PAGES)
def test_links_named_files_and_length(page):
    text = (GUIDES / page).read_text()
    assert text.count("\n") <= 200
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in link or (GUIDES / link).exists(), f"{page} links to {link}"
    for name in re.findall(r"(?:bash|python) ((?:scripts|configs|tests)/[\w./-]+)", text):
        assert (ROOT / name).exists(), f"{page} names {name}"
