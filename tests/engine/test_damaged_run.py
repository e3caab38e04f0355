"""A run folder that was damaged, images that were changed, processes that were started differently: a sentence each."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch

from ddfnet.checkpoint import read_checkpoint
from ddfnet.data.class_hashes import class_hashes, differing_classes
from ddfnet.data.prepare.encode import Encoding
from ddfnet.data.prepare.write import write_store
from ddfnet.data.sources import open_source
from ddfnet.engine import agreement
from ddfnet.engine.distributed import Distributed
from ddfnet.engine.resumable import faults_of_resumable
from ddfnet.engine.train import train
from ddfnet.tasks import create_task, load_config
from ddfnet.utils.errors import CheckpointError, UserError
from ddfnet.utils.files import read_jsonl
from tests.conftest import CLASSES, TINY
from tests.processes import launch_forked


@pytest.fixture(scope="module")
def finished(tmp_path_factory, image_tree):
    """A finished run of 12 steps."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY.format(root=image_tree))
    train(load_config(folder / "tiny.yaml", [f"run.dir={folder / 'run'}", "checkpoints.keep=0"]))
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """Its folder, copied, with the checkpoint at step 8 of 12; and a function that resumes."""
    folder = tmp_path / "run"
    shutil.copytree(finished / "run", folder)
    change(folder / "last.pt", lambda payload: payload.update(step=8))

    def resume(*overrides):
        return train(load_config(finished / "tiny.yaml", [f"run.dir={folder}", *overrides]))

    return folder, resume


def change(path, edit):
    payload = torch.load(path, weights_only=True)
    edit(payload)
    torch.save(payload, path)


WITHOUT = ["meta", "config", "model", "ema", "step", "best", "optimizer", "scaler", "evaluation_due", "images", "local"]
CHANGES = {
    **{f"without {key}": (lambda payload, key=key: payload.pop(key), f"{key}: missing") for key in WITHOUT},
    "step is text": (lambda p: p.update(step="8"), "step: must be a valid integer, got '8'"),
    "step is negative": (lambda p: p.update(step=-1), "step: must be greater than or equal to 0, got -1"),
    "step beyond the end": (lambda p: p.update(step=99), "at step 99, beyond the end of the run at 12"),
    "best is empty": (lambda p: p.update(best={}), "best.value: missing; best.step: missing"),
    "images is a list": (lambda p: p.update(images=[1]), "images: must be a valid dictionary"),
    "a weight is a number": (lambda p: p["model"].update({"fc.bias": 3}), "model.fc.bias: must be an instance of Ten"),
    "a weight of another shape": (lambda p: p["model"].update({"fc.bias": torch.zeros(9)}), "fc.bias: copying a param"),
    "a weight is missing": (lambda p: p["model"].pop("fc.bias"), 'Missing key.s. in state_dict: "fc.bias"'),
    "optimizer of no groups": (lambda p: p["optimizer"].update(param_groups=[]), "optimizer.param_groups: list should"),
    "optimizer of other groups": (lambda p: p["optimizer"]["param_groups"].pop(), "another model or optimizer"),
    "statistics of other size": (
        lambda p: p["local"].update(model=torch.zeros(1, 3)),
        r"local.model has 3 statistics a process, the model \d+",
    ),
    "statistics of other form": (lambda p: p["local"].update(model=torch.zeros(3)), "a row for each process"),
    "statistics of no process": (lambda p: p["local"].clear(), "local must hold loss_sum and model"),
    "another format": (lambda p: p.update(format="ddfnet.checkpoint.v0"), "format: must be 'ddfnet.checkpoint.v1'"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_damaged_checkpoint(case, run):
    folder, resume = run
    edit, words = CHANGES[case]
    change(folder / "last.pt", edit)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}
    with pytest.raises(CheckpointError, match=words) as error:
        resume()
    assert str(folder / "last.pt") in str(error.value)
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}
    assert before == after


def test_a_whole_checkpoint_has_no_faults(finished):
    assert faults_of_resumable(read_checkpoint(finished / "run" / "last.pt")) == []


def test_a_flipped_bit_is_noticed(run):
    folder, resume = run
    data = bytearray((folder / "last.pt").read_bytes())
    weight = torch.load(folder / "last.pt", weights_only=True)["model"]["fc.weight"].numpy().tobytes()
    data[bytes(data).index(weight) + 5] ^= 16
    (folder / "last.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged: .* has another checksum"):
        resume()


def test_bytes_of_an_archive_that_are_damaged_are_no_traceback(run):
    """Anywhere: in the directory of the archive, its records, the pickle."""
    folder, _ = run
    whole = (folder / "last.pt").read_bytes()
    rng = np.random.default_rng(0)
    places = [*rng.integers(0, len(whole), 15), *rng.integers(len(whole) - 3000, len(whole), 25)]
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        (folder / "last.pt").write_bytes(data)
        with contextlib.suppress(CheckpointError):  # some bits nobody reads, such as times of files
            read_checkpoint(folder / "last.pt")


def test_tasks_without_classes_compare_names(finished, tmp_path):
    task = create_task(load_config(finished / "tiny.yaml", []).config)
    before = task.name_hashes()
    moved = tmp_path / "moved"
    shutil.copytree(task.config.data.root, moved)
    again = create_task(load_config(finished / "tiny.yaml", [f"data.root={moved}"]).config)
    assert again.name_hashes() == before
    rename_in_val(moved)
    other = create_task(load_config(finished / "tiny.yaml", [f"data.root={moved}"]).config).name_hashes()
    assert (other["train"] == before["train"], other["val"] == before["val"]) == (True, False)


@pytest.mark.parametrize("content", [b'{"starts": [{"ti', b"[]", b'{"starts": 3}', b"\xff\xfe\x00"])
def test_run_json_begins_anew(content, run, capsys):
    folder, resume = run
    (folder / "run.json").write_bytes(content)
    assert resume() == 0
    assert len(json.loads((folder / "run.json").read_text())["starts"]) == 1
    assert (folder / "run.json.damaged").read_bytes() == content
    assert "run.json is damaged: kept as run.json.damaged" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01\n" * 3, b"[1, 2]\n[3]\n"])
def test_metrics_are_kept_as_far_as_they_are_whole(content, run, capsys):
    folder, resume = run
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    damaged = b"".join(lines[:3]) + content + b"".join(lines[3:])
    (folder / "metrics.jsonl").write_bytes(damaged)
    assert resume() == 0
    steps = [(record["kind"], record["step"]) for record in read_jsonl(folder / "metrics.jsonl")]
    assert steps[:3] == [(json.loads(line)["kind"], json.loads(line)["step"]) for line in lines[:3]]
    assert [step for kind, step in steps[3:] if kind == "train"] == [9, 10, 11, 12]
    assert (folder / "metrics.jsonl.damaged").read_bytes() == damaged
    assert "metrics.jsonl is damaged: kept as metrics.jsonl.damaged; its first 3 records" in capsys.readouterr().err


def test_metrics_that_are_a_folder_or_cut_or_no_records(run):
    folder, resume = run
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1}\n{"kind": 2}\n')
    assert resume() == 0
    assert (folder / "metrics.jsonl.damaged").exists()
    assert [r["step"] for r in read_jsonl(folder / "metrics.jsonl") if r["kind"] == "train"] == list(range(1, 13))
    (folder / "metrics.jsonl.damaged").unlink()
    change(folder / "last.pt", lambda payload: payload.update(step=8))
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    assert resume() == 0
    assert (folder / "metrics.jsonl.damaged").is_dir()
    change(folder / "last.pt", lambda payload: payload.update(step=8))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')  # what a crash leaves: no damage
    assert resume() == 0
    assert not (folder / "metrics.jsonl.damaged2").exists()


@pytest.fixture
def images(image_tree, tmp_path):
    """A copy of the images, and the arguments to train on it."""
    shutil.copytree(image_tree, tmp_path / "images")
    return tmp_path / "images"


def swap_classes(root):
    (root / "train" / "disc").rename(root / "train" / "x")
    (root / "train" / "ring").rename(root / "train" / "disc")
    (root / "train" / "x").rename(root / "train" / "ring")
    # Of different sizes, as real images are; those of the tree may have equal ones.
    (root / "train" / "disc" / "0.png").write_bytes((root / "train" / "disc" / "0.png").read_bytes() + b"\0")


def move_between_classes(root):
    (root / "train" / "disc" / "3.png").rename(root / "train" / "ring" / "9.png")
    (root / "train" / "ring" / "4.png").rename(root / "train" / "disc" / "4b.png")


def rename_in_val(root):
    (root / "val" / "grid" / "1.png").rename(root / "val" / "grid" / "z.png")


def replace_class(root):
    for path in (root / "train" / "grid").iterdir():
        path.write_bytes(path.read_bytes() + b"\0\0")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (swap_classes, "train images differ in disc"),
        (move_between_classes, "train images differ in disc, ring"),
        (rename_in_val, "val images differ in grid"),
        (replace_class, "train images differ in grid"),
    ],
)
def test_changed_images_of_the_same_number(edit, words, images, tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY.format(root=images))
    arguments = [f"run.dir={tmp_path / 'run'}"]
    train(load_config(tmp_path / "tiny.yaml", arguments))
    assert train(load_config(tmp_path / "tiny.yaml", arguments)) == 0  # as they were
    edit(images)
    with pytest.raises(CheckpointError, match=rf"names or sizes of the {words}.*run\.allow_changes=true"):
        train(load_config(tmp_path / "tiny.yaml", arguments))
    assert train(load_config(tmp_path / "tiny.yaml", [*arguments, "run.allow_changes=true"])) == 0


def test_class_hashes(images):
    before = class_hashes(open_source(images / "train"))
    assert sorted(before) == ["cross", "disc", "grid", "ring", "stripes"]
    (images / "train" / "grid" / "6.png").write_bytes(b"")
    now = class_hashes(open_source(images / "train"))
    assert differing_classes(before, now) == ["grid"]
    # In another form, the same images are the same; a prepared store has other bytes.
    listed = images / "train.csv"
    names = [f"train/{kind}/{path.name},{kind}" for kind in CLASSES for path in (images / "train" / kind).iterdir()]
    listed.write_text("\n".join(["path,label", *names]))
    assert class_hashes(open_source(listed)) == now
    write_store(open_source(images / "val"), images / "store", Encoding())
    stored, plain = class_hashes(open_source(images / "store")), class_hashes(open_source(images / "val"))
    assert stored != plain
    assert differing_classes(stored, plain) == []
    relabeled = class_hashes(open_source(images / "train", classes=["disc", "cross", "grid", "ring", "stripes"]))
    assert differing_classes(now, relabeled) == ["cross", "disc"]


class TwoProcesses(Distributed):
    """Process 0 of two, of which the other one has what `other` makes of its facts."""

    def gather_objects(self, value):
        return [value, self.other(value)]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"optim.lr": 0.5}, r"optim.lr: 0.05 on process 0, 0.5 on process 1"),
        ({"run.seed": 7}, r"run.seed: \d+ on process 0, 7 on process 1"),
        ({"git commit": "abc"}, r"git commit: .* on process 0, 'abc' on process 1"),
        ({"new.key": 1}, r"new.key: 'absent' on process 0, 1 on process 1"),
    ],
)
def test_processes_with_other_configurations(other, words, finished, monkeypatch):
    config = load_config(finished / "tiny.yaml", []).config
    two = TwoProcesses(0, 2, torch.device("cpu"))
    object.__setattr__(two, "other", dict)
    agreement.check_same_config(config, two)
    object.__setattr__(two, "other", lambda facts: {**facts, **other})
    with pytest.raises(UserError, match=words):
        agreement.check_same_config(config, two)


STARTS = """
import os, sys
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from ddfnet.utils.cli import run
overrides = sys.argv[3:] if os.environ["RANK"] == "1" else []
run(lambda: train(load_config(sys.argv[1], [f"run.dir={sys.argv[2]}", *overrides])))
"""


def test_a_process_with_other_images_is_named(images, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(images, other)
    rename_in_val(other)
    (tmp_path / "tiny.yaml").write_text(TINY.format(root=images))
    (tmp_path / "start.py").write_text(STARTS)
    arguments = [tmp_path / "tiny.yaml", tmp_path / "run", f"data.root={other}"]
    result = launch_forked(tmp_path / "start.py", *arguments, processes=2)
    assert result.returncode != 0
    assert "the processes differ in val class grid (hash of its images): " in result.stderr
    assert not (tmp_path / "run").exists()
