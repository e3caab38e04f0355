"""A profile of some steps: the trace, the table by cause, and what it must not touch."""

import json
from types import SimpleNamespace

from ddfnet.engine.profile import DATA, format_table
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from tests.engine.runs import whole_run
from tests.engine.test_resume import assert_same_bits


def event(key, cpu=0.0, device=0.0):
    return SimpleNamespace(key=key, self_cpu_time_total=cpu, cpu_time_total=cpu, self_device_time_total=device)


def shares(table):
    return {line[:44].strip(): line.split()[-1] for line in table.splitlines() if line.endswith("%")}


def test_causes_on_a_cpu_add_up():
    events = [event(DATA, 2e6), event("aten::mm", 3e6), event("gloo:all_reduce", 1e6), event("Optimizer.step", 9e6)]
    found = shares(format_table(events, 10.0, 4, "cpu"))
    assert found == {"data": "20.0%", "kernels": "30.0%", "communication": "10.0%", "host": "40.0%",
                     "the step (with the profiler)": "100.0%", "aten::mm": "30.0%"}  # fmt: skip


def test_causes_on_a_gpu():
    events = [event(DATA, 1e6), event("aten::mm", 2e6), event("cudaDeviceSynchronize", 5e6),
              event("sm90_gemm", device=6e6), event("ncclDevKernel_AllReduce", device=3e6)]  # fmt: skip
    found = shares(format_table(events, 10.0, 1, "cuda"))
    assert {key: found[key] for key in ("data", "host", "kernels", "communication", "sm90_gemm")} == {
        "data": "10.0%", "host": "20.0%", "kernels": "60.0%", "communication": "30.0%", "sm90_gemm": "60.0%",
    }  # fmt: skip


def test_a_profiled_run_has_its_files_and_the_same_bits(tiny_config, tmp_path, capsys):
    plain = whole_run(tiny_config, tmp_path / "plain", "train.epochs=1", "schedule.warmup_epochs=0")
    seen = whole_run(tiny_config, tmp_path / "seen", "train.epochs=1", "schedule.warmup_epochs=0", "profile.steps=2:99")
    for key in plain.keys() - {"config"}:
        assert_same_bits(plain[key], seen[key], key)
    trace = json.loads((tmp_path / "seen/profile_2_4.trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {DATA, "ddfnet::ddf_backward"} <= names
    text = (tmp_path / "seen/profile_2_4.txt").read_text()
    assert text.startswith("steps 2 to 3\n")
    assert text.splitlines()[2] in capsys.readouterr().out
    assert 0 < float(shares(text)["kernels"].rstrip("%")) <= 100


def test_a_dry_run_shows_the_table_and_writes_nothing(tiny_config, tmp_path, capsys):
    overrides = [f"run.dir={tmp_path / 'run'}", "profile.steps=10:15"]
    assert train(load_config(tiny_config, overrides), dry_run=True) == 0
    assert "profile of steps 1 to 1" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
