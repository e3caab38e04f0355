"""policy.py on small images: both forms do the same work, and the report is complete. Nothing asserts speed."""

import json

import numpy as np
import pytest

from ddfnet.utils.errors import UserError
from scripts.benchmarks import policy
from tests.processes import launch_forked


def test_the_report(tmp_path, capsys):
    path = tmp_path / "report.json"
    assert policy.main(["--size", "32", "--batch", "4", "--passes", "1", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert [row["name"] for row in report["rows"]] == list(policy.RECIPES)
    for row in report["rows"]:
        assert row["ratio"] == pytest.approx(row["pillow_ms"] / row["batched_ms"])
        assert row["pillow_ms"] > 0
        assert row["further_apart"] < 0.01
    assert report["environment"]["pillow"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + len(policy.RECIPES)


def test_distances_are_of_the_pixels(monkeypatch):
    """With one side changed by 1 and by 5 levels, that is what it reports."""
    plain = policy.apply_policy

    def changed(images, draws, fill):
        made = plain(images, draws, fill).clone()
        made[:, 0] ^= 1
        made[:, 1] ^= 8
        return made

    pixels = policy.make_images(8, 24)
    assert pixels.shape == (8, 24, 24, 3)
    monkeypatch.setattr(policy, "apply_policy", changed)
    row = policy.measure("jitter", pixels, policy.torch.device("cpu"), 1)
    assert row["one_level_apart"] == pytest.approx(1 / 3, abs=0.01)
    assert row["further_apart"] == pytest.approx(1 / 3, abs=0.01)
    assert np.isfinite(row["batched_ms"])


@pytest.mark.parametrize("recipe", ["augmix", "rand-n0", "nonsense"])
def test_recipes_without_batched_operations_are_refused(recipe):
    with pytest.raises(UserError, match=f"--recipes {recipe}"):
        policy.main(["--recipes", recipe, "--size", "16"])


def test_a_mistake_is_exit_code_2():
    done = launch_forked("scripts/benchmarks/policy.py", "--recipes", "nonsense")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
