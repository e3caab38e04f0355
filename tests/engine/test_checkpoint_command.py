"""`python -m ddfnet checkpoint`: list, average, export, rewind."""

import shutil
from pathlib import Path

import pytest
import torch

from ddfnet.__main__ import checkpoint_arguments
from ddfnet.checkpoint import read_checkpoint, read_weights
from ddfnet.engine.checkpoint_command import main
from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from tests.conftest import TINY, exit_code
from tests.engine.test_resume import assert_same_run


def call(*arguments):
    return main(checkpoint_arguments([str(argument) for argument in arguments]))


def fails(capsys, *arguments):
    assert exit_code(lambda given: main(checkpoint_arguments(given)), arguments) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory, image_tree):
    """A finished run of 3 epochs with the best two."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY.format(root=image_tree))
    overrides = [f"run.dir={folder / 'run'}", "checkpoints.best=2", "train.ema={decay: 0.5}", "eval.every=1"]
    train(load_config(folder / "tiny.yaml", overrides))
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished / "run", tmp_path / "run")


def test_list(copy, capsys):
    (copy / "checkpoints" / "step_00000008.pt").write_bytes(b"")
    broken = read_checkpoint(copy / "checkpoints" / "step_00000004.pt")
    broken["model"]["fc.bias"][0] = float("inf")
    torch.save(broken, copy / "checkpoints" / "step_00000004.pt")
    assert call("list", copy) == 0
    out = capsys.readouterr().out
    assert max(map(len, (line for line in out.splitlines() if str(copy) not in line))) <= 80  # paths stay whole
    # What is known of a file stands below it.
    lines = {line.split()[0]: line for line in out.replace("\n    ", "  ").splitlines()}
    assert lines["last.pt"].split()[1:3] == ["12", "3.00"]
    assert "yes" in lines["last.pt"]
    assert "truncated" in lines["checkpoints/step_00000008.pt"]
    assert "no " in lines["checkpoints/step_00000004.pt"]
    assert "NaN or infinite" in lines["checkpoints/step_00000004.pt"]
    assert "top1" in lines["best.pt"]
    assert "no " in lines["best.pt"]
    assert len(lines) == 8  # with the head, and two best ones


def test_list_of_nothing(tmp_path, capsys):
    assert "holds no checkpoints" in fails(capsys, "list", tmp_path)
    assert "is no folder" in fails(capsys, "list", tmp_path / "none")


def test_average_of_the_best_is_evaluated(finished, image_tree, tmp_path, capsys):
    assert call("average", finished / "run", "-o", tmp_path / "mean.pt") == 0
    output = capsys.readouterr().out
    assert "mean of the ema weights of best_step_" in output
    assert "running statistics of batch norms were averaged" in output
    files = sorted((finished / "run" / "checkpoints").glob("best_step_*.pt"))
    states, mean = [read_weights(file).state_dict for file in files], read_weights(tmp_path / "mean.pt").state_dict
    assert len(states) == 2
    assert mean.keys() == states[0].keys()
    for key, tensor in mean.items():
        expected = states[1][key]
        if expected.is_floating_point():
            expected = ((states[0][key].numpy().astype("f8") + states[1][key].numpy()) / 2).astype("f4")
        assert torch.equal(tensor, torch.as_tensor(expected)), key
    options = {"data": image_tree, "device": "cpu", "workers": 0, "output": tmp_path / "report"}
    assert evaluate_checkpoint(tmp_path / "mean.pt", **options).metrics["n"] == 25


def test_average_of_named_files_as_safetensors(finished, tmp_path):
    names = ["step_00000004.pt", "last.pt"]
    assert call("average", finished / "run", *names, "-o", tmp_path / "mean.safetensors", "--weights", "raw") == 0
    one = read_weights(finished / "run" / "checkpoints" / names[0], prefer="raw").state_dict["fc.weight"]
    two = read_weights(finished / "run" / "last.pt", prefer="raw").state_dict["fc.weight"]
    assert torch.allclose(read_weights(tmp_path / "mean.safetensors").state_dict["fc.weight"], (one + two) / 2)


def test_weights_that_are_not_finite_are_left_alone(copy, tmp_path, capsys):
    broken = read_checkpoint(copy / "checkpoints" / "step_00000004.pt")
    broken["ema"]["fc.bias"][0] = float("nan")
    torch.save(broken, copy / "checkpoints" / "step_00000004.pt")
    text = "step_00000004.pt is of no use: some of its ema weights are NaN or infinite"
    assert text in fails(capsys, "average", copy, "last.pt", "step_00000004.pt", "-o", tmp_path / "a.pt")
    assert text in fails(capsys, "export", copy, "step_00000004.pt", "-o", tmp_path / "a.safetensors")
    assert call("export", copy, "step_00000004.pt", "-o", tmp_path / "raw.safetensors", "--weights", "raw") == 0


def test_a_run_is_not_set_back_to_a_checkpoint_of_another_one(finished, copy, capsys):
    other = finished / "run" / "checkpoints" / "step_00000004.pt"
    assert f"{other} is not of this run" in fails(capsys, "rewind", copy, other)
    assert read_checkpoint(copy / "last.pt")["step"] == 12


def test_averages_that_cannot_be(finished, tmp_path, capsys):
    run, out = finished / "run", tmp_path / "mean.pt"
    assert "two checkpoints or more, got 1" in fails(capsys, "average", run, "best.pt", "-o", out)
    other = read_checkpoint(run / "best.pt")
    other["meta"]["classes"] = ["a", "b", "c", "d", "e"]
    torch.save(other, tmp_path / "other.pt")
    assert "classes differ" in fails(capsys, "average", run, "best.pt", tmp_path / "other.pt", "-o", out)
    torch.save({"state_dict": other["model"]}, tmp_path / "bare.pt")
    bare = [tmp_path / "bare.pt", shutil.copy(tmp_path / "bare.pt", tmp_path / "bare2.pt")]
    assert "does not say of which model" in fails(capsys, "average", run, *bare, "-o", out)
    assert "each file once" in fails(capsys, "average", run, "best.pt", "best.pt", "-o", out)
    assert "must end in .pt or .safetensors" in fails(capsys, "average", run, "-o", tmp_path / "a.bin")
    assert not out.exists()
    assert "exists: name a new file" in fails(capsys, "average", run, "-o", tmp_path / "bare.pt")


def test_export(finished, tmp_path, capsys):
    assert call("export", finished / "run", "-o", tmp_path / "raw.safetensors", "--weights", "raw") == 0
    assert call("export", finished / "run", "step_00000004.pt", "-o", tmp_path / "ema.safetensors") == 0
    raw, ema = (read_weights(tmp_path / f"{kind}.safetensors") for kind in ("raw", "ema"))
    assert (raw.kind, ema.kind) == ("model", "ema")
    assert torch.equal(raw.state_dict["fc.weight"], read_checkpoint(finished / "run" / "best.pt")["model"]["fc.weight"])
    assert ema.meta["step"] == 4
    assert "must end in .safetensors" in fails(capsys, "export", finished / "run", "-o", tmp_path / "a.pt")


def test_rewind_and_resume_gives_the_same_bits(finished, copy, capsys):
    assert call("rewind", copy, "step_00000004.pt") == 0
    output = capsys.readouterr().out.splitlines()
    assert output[0] == f"{copy} resumes from step 4; kept beside, to be deleted by you:"
    assert output[1:4] == [
        f"  {copy / name}.former"
        for name in ("last.pt", "checkpoints/step_00000008.pt", "checkpoints/step_00000012.pt")
    ]
    assert all(Path(line.strip()).is_file() for line in output[1:])
    assert read_checkpoint(copy / "best.pt")["meta"]["step"] == 4
    assert read_weights(copy / "best.safetensors").meta["step"] == 4
    assert [path.name for path in (copy / "checkpoints").glob("best*.pt")] == []  # only two of the whole run
    assert [path.name for path in sorted((copy / "checkpoints").glob("step*.pt"))] == ["step_00000004.pt"]
    overrides = [f"run.dir={copy}", "checkpoints.best=2", "train.ema={decay: 0.5}", "eval.every=1"]
    assert train(load_config(finished / "tiny.yaml", overrides)) == 0
    assert f"resuming from {copy / 'last.pt'}: step 4 of 12" in capsys.readouterr().out
    assert_same_run(copy, finished / "run")
    assert "no checkpoint to resume from (it holds weights alone)" in fails(capsys, "rewind", copy, "best.pt")
    assert "there is no such file" in fails(capsys, "rewind", copy, "step_00000099.pt")
