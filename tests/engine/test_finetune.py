"""The options of fine-tuning in whole runs: exact under resume, and the same on two processes."""

import numpy as np
import pytest
import torch

from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from ddfnet.utils.errors import ConfigError
from tests.conftest import CLASSES, TINY, draw
from tests.engine.runs import assert_resumes_exactly
from tests.engine.test_distributed_equivalence import TOLERANCE, run_here, run_two_processes

OPTIONS = {"imbalance": ("loss.class_weights=auto", "data.sampler=balanced", "augment.mixup=0.2")}


@pytest.fixture(scope="module")
def uneven_tree(tmp_path_factory):
    """38 training images, 20 of one class and 3 of another; 10 for validation."""
    root, rng = tmp_path_factory.mktemp("uneven"), np.random.default_rng(0)
    for kind, count in zip(CLASSES, (20, 3, 5, 5, 5), strict=True):
        for split, images in (("train", count), ("val", 2)):
            (root / split / kind).mkdir(parents=True)
            for i in range(images):
                draw(kind, rng).save(root / split / kind / f"{i}.png")
    return root


@pytest.fixture
def uneven_config(tmp_path, uneven_tree):
    path = tmp_path / "uneven.yaml"
    path.write_text(TINY.format(root=uneven_tree).replace("ddf_mul_resnet14_32px", "resnet14_32px"))
    return path


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_ends_with_the_same_bits(uneven_config, tmp_path, monkeypatch, name):
    assert_resumes_exactly(uneven_config, tmp_path, monkeypatch, *OPTIONS[name])


@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_train_alike(uneven_config, tmp_path, name):
    one = run_here(uneven_config, tmp_path / "one", *OPTIONS[name])
    two = run_two_processes(uneven_config, tmp_path / "two", *OPTIONS[name])
    assert len(one) == 12
    torch.testing.assert_close(two, one, rtol=TOLERANCE, atol=0)


def test_class_weights_are_printed_and_a_wrong_number_is_refused(uneven_config, tmp_path, capsys):
    folder = tmp_path / "run"
    assert train(load_config(uneven_config, ["loss.class_weights=auto", f"run.dir={folder}", "train.epochs=1"])) == 0
    assert "class weights: cross 0.254, disc 1.69, grid 1.02, ring 1.02, stripes 1.02" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"loss\.class_weights has 2 values"):
        train(load_config(uneven_config, ["loss.class_weights=[1, 2]", f"run.dir={tmp_path / 'none'}"]))
    assert not (tmp_path / "none").exists()
