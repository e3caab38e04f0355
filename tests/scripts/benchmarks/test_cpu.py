"""The CPU benchmark on tiny shapes: every row, medians of interleaved calls, rows added. Nothing asserts speed."""

import json

import pytest
import torch

from scripts.benchmarks import cpu, cpu_cases


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(folder, *arguments):
    assert cpu.main([*arguments, "--rounds", "3", "--budget", "0.1", "--output", str(folder)]) == 0
    return json.loads((folder / f"cpu_{arguments[0]}.json").read_text())


def test_the_operators(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_cases, "SHAPES", {"tiny": (32, 8)})
    for dtype in ("fp32", "bf16"):
        report = run(tmp_path, "op", "--threads", "1", "--batch", "2", "--dtype", dtype)
    names = list(cpu_cases.operator_calls(1, 32, 8, torch.float32))
    settings = [
        f"{part} tiny, 1 thr, batch 2, {d}" for d in ("fp32", "bf16") for part in ("forward", "forward_backward")
    ]
    assert [(row["setting"], row["what"]) for row in report["rows"]] == [(s, n) for s in settings for n in names]
    assert all(row["rounds"] == 3 and row["wall_ms"] > 0 and row["cpu_ms"] > 0 for row in report["rows"])
    assert len(report["commands"]) == 2
    table = (tmp_path / "cpu_op.md").read_text()
    assert all(name in table for name in names)


def test_a_wrong_formulation_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_cases, "SHAPES", {"tiny": (32, 8)})
    monkeypatch.setattr(cpu_cases, "published_involution", lambda x, filters: x)
    with pytest.raises(ValueError, match="as published differs from"):
        run(tmp_path, "op", "--threads", "1", "--batch", "2", "--dtype", "fp32")


def test_the_path_in_pytorch_is_not_native():
    from ddfnet.ops.ddf import native

    seen = []
    cpu_cases.in_pytorch(lambda: seen.append(native.is_usable(None)))()
    assert seen == [False]


def test_the_networks(tmp_path, monkeypatch):
    both = ("ddf_mul_resnet14_32px", "resnet14_32px")
    monkeypatch.setattr(cpu_cases, "NETWORKS", both)
    size = ("--image-size", "32", "--threads", "1", "--batch", "2", "--dtype", "fp32")
    report = run(tmp_path, "inference", *size, "--runtimes", "eager", "folded")
    assert len(report["rows"]) == 4
    if cpu.package_version("onnxruntime") and cpu.package_version("onnxscript"):
        monkeypatch.setattr(cpu_cases, "NETWORKS", both[1:])  # to export one takes longer than all else
        report = run(tmp_path, "inference", *size, "--runtimes", "eager", "onnxruntime")
        assert len(report["rows"]) == 5  # those of the same name are replaced
        monkeypatch.setattr(cpu_cases, "NETWORKS", both)
    for row in report["rows"]:
        assert row["images_per_second"] == pytest.approx(2000 / row["wall_ms"])
    again = run(tmp_path, "inference", *size, "--runtimes", "eager")
    assert len(again["rows"]) == len(report["rows"])
    assert len(run(tmp_path, "training", *size)["rows"]) == 2


def test_refused(monkeypatch, capsys):
    monkeypatch.setattr(cpu, "package_version", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        cpu.main(["inference", "--runtimes", "openvino"])
    assert stopped.value.code == 2
    assert "pip install openvino" in capsys.readouterr().err
    for ignored in (
        ["op", "--image-size", "64"],
        ["op", "--runtimes", "compiled"],
        ["training", "--runtimes", "eager"],
    ):
        with pytest.raises(SystemExit) as stopped:
            cpu.main(ignored)
        assert stopped.value.code == 2
        assert "leave it out for" in capsys.readouterr().err
