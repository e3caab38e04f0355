"""The two commands as people meet them: help, exit codes, one clear line per mistake, never a traceback."""

import argparse
import os
import shutil
import subprocess
import sys
from unittest import mock

import pytest
import torch

import eval as eval_script
import train as train_script
from ddfnet.utils.cli import HelpFormatter, run
from tests.conftest import ROOT, environment, launch
from tests.processes import launch_forked


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a script's main in this process; returns (exit code, stdout, stderr)."""

    def _call(script, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        parsed = script.parse_arguments()
        with pytest.raises(SystemExit) as stopped:
            run(lambda: script.main(parsed))
        out = capsys.readouterr()
        return stopped.value.code, out.out, out.err

    return _call


def assert_one_clear_error(result, *words):
    code, _, err = result
    assert code == 2, err
    assert "Traceback" not in err
    assert err.count("error:") == 1
    for word in words:
        assert word in err, err


def test_help_names_the_commands_and_comes_without_importing_torch():
    for script, words in (
        ("train.py", ("torchrun --nproc-per-node 8", "--dry-run", "--print-config", "75")),
        ("eval.py", ("--checkpoint", "--model", "report.json", "torchrun")),
    ):
        result = launch(script, "--help")
        assert result.returncode == 0
        for word in words:
            assert word in result.stdout
    probe = f"import sys; sys.argv=['train.py', '--help']; sys.path.insert(0, {str(ROOT)!r})\n"
    probe += "import train\ntry: train.parse_arguments()\nfinally: assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode == 0


def test_print_config_shows_origins(call, tiny_config):
    code, out, _ = call(train_script, "--config", tiny_config, "--print-config", "optim.lr=0.25")
    assert code == 0
    assert "lr: 0.25  # command line" in out
    assert f"name: ddf_mul_resnet14_32px  # {tiny_config}:2" in out
    assert "min_lr: 0.0  # default" in out


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optm.lr=1"], ["unknown key optm.lr", "did you mean optim.lr?"]),
        (["train.epochs=three"], ["train.epochs=three", "whole number"]),
        (["data.root=/nowhere/at/all"], ["/nowhere/at/all"]),
        (["model.name=ddf_mul_resnet5"], ["ddf_mul_resnet5", "did you mean"]),
        (["model.kwargs={sqeeze_ratio: 0.3}"], ["sqeeze_ratio"]),
        (["optim.name=sgdd"], ["optim.name=sgdd", "sgd"]),
        (["augment.rand_augment=rand-m"], ["rand-m", "rand-m7-mstd0.5-inc1"]),
        (["train.batch_size=64"], ["train.batch_size=64", "35 training images"]),
        (["train.batch_size=9"], ["train.batch_size=9", "train.device_batch_size=3"]),
        (["model.num_classes=3"], ["model.num_classes=3", "5 classes"]),
        (["model.init_checkpoint=/nowhere.pt"], ["/nowhere.pt", "not found"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_mistakes_in_training(call, tiny_config, tmp_path, overrides, words):
    result = call(train_script, "--config", tiny_config, f"run.dir={tmp_path / 'run'}", *overrides)
    assert_one_clear_error(result, *words)
    assert not (tmp_path / "run").exists()


def test_missing_config_file(call):
    assert_one_clear_error(call(train_script, "--config", "configs/nothing.yaml"), "configs/nothing.yaml", "not found")


def test_empty_class_folder(call, tiny_config, image_tree, tmp_path):
    shutil.copytree(image_tree, tmp_path / "tree")
    (tmp_path / "tree" / "train" / "square").mkdir()
    overrides = (f"data.root={tmp_path / 'tree'}", f"run.dir={tmp_path / 'run'}")
    result = call(train_script, "--config", tiny_config, *overrides)
    assert_one_clear_error(result, "square", "no images")
    assert not (tmp_path / "run").exists()


def test_mistakes_in_evaluation(call, tmp_path):
    assert_one_clear_error(call(eval_script, "--checkpoint", tmp_path / "no.pt"), "no.pt", "not found")
    cut = tmp_path / "cut.pt"
    torch.save({"state_dict": {"w": torch.zeros(1000)}}, cut)
    cut.write_bytes(cut.read_bytes()[:999])
    assert_one_clear_error(call(eval_script, "--checkpoint", cut), "cut.pt", "truncated")


def test_real_processes_end_with_code_2_and_one_line(tiny_config, tmp_path):
    result = launch("train.py", "--config", tiny_config, "optm.lr=1")
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[0].startswith("train.py: error:")
    assert "Traceback" not in result.stderr
    result = launch_forked("eval.py", "--checkpoint", tmp_path / "none.pt")
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1


def test_gpu_asked_for_where_there_is_none(call, tiny_config):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert_one_clear_error(call(train_script, "--config", tiny_config, "run.device=cuda"), "no GPU", "run.device=cpu")


def test_a_mistake_that_one_process_meets_is_told_by_it(tiny_config, image_tree, tmp_path):
    """The broken image is in the share of the second process, which reads it: nothing is decoded at the start."""
    tree = tmp_path / "tree"
    shutil.copytree(image_tree, tree)
    (tree / "val" / "cross" / "1.png").write_bytes(b"broken")
    overrides = ("data.cache=none", f"data.root={tree}", f"run.dir={tmp_path / 'run'}")
    result = launch_forked("train.py", "--config", tiny_config, *overrides, processes=2)
    assert result.returncode != 0
    assert result.stderr.count("train.py: error: [process 1]") == 1
    assert "val/cross/1.png" in result.stderr
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == 4  # the epoch is saved


def test_a_reader_that_leaves_early_is_no_error():
    code = "import sys; from ddfnet.utils.cli import run; run(lambda: [print(i) for i in range(100_000)] and 0)"
    command = f"{sys.executable} -c '{code}' | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "141"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["configs/demo.yaml", "run.dir=x"], "configs/demo.yaml is given as --config configs/demo.yaml"),
        (["data.root=a.yaml"], "--config FILE is required"),
        ([], "--config FILE is required"),
    ],
)
def test_a_file_without_its_option(arguments, message):
    done = launch("train.py", *arguments)
    assert done.returncode == 2
    assert done.stderr.endswith(f"error: {message}\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("lines", [1, 10_000])  # one waits in the buffer until the end, many do not
def test_a_full_disk_behind_the_output_is_a_sentence(lines):
    code = (
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom ddfnet.utils.cli import run\n"
        f"run(lambda: print('a line of text\\n' * {lines}) or 0)\n"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False
        )
    assert done.returncode == 74
    assert "stopped: " in done.stderr
    assert "No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_any_other_broken_pipe_is_an_error():
    code = (
        "import os; from ddfnet.utils.cli import run\n"
        "def main():\n r, w = os.pipe(); os.close(r); os.write(w, b'x')\n"
        "run(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr


def test_help_wraps_text_and_keeps_indented_lines():
    parser = argparse.ArgumentParser(description="word " * 40 + "\n\n  a   command\n", formatter_class=HelpFormatter)
    with mock.patch.dict(os.environ, {"COLUMNS": "60"}):
        lines = parser.format_help().splitlines()
    assert "  a   command" in lines
    assert max(map(len, lines)) <= 60
    assert sum(line.startswith("word word") for line in lines) == 4
