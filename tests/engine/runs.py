"""Runs in this process, whole or interrupted, for tests of what must be exact under resume."""

from ddfnet.engine.signals import EXIT_INTERRUPTED, StopSignal
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from tests.engine.test_resume import assert_same_bits, kept, state


def whole_run(config, folder, *overrides):
    """The `last.pt` of a run from start to end."""
    assert train(load_config(config, [f"run.dir={folder}", *overrides])) == 0
    return state(folder)


def interrupted_run(config, folder, monkeypatch, *overrides, stops=(3, 6)):
    """The `last.pt` of a run that is stopped after some steps, and started again each time."""
    for stop in stops:
        with monkeypatch.context() as patch:
            patch.setattr(StopSignal, "agreed", lambda self, step, stop=stop, save=False: step == stop)
            assert train(load_config(config, [f"run.dir={folder}", *overrides])) == EXIT_INTERRUPTED
        assert state(folder)["step"] == stop
    return whole_run(config, folder, *overrides)


def assert_resumes_exactly(config, tmp_path, monkeypatch, *overrides, stops=(3, 6)):
    """Both runs end with the same bits and the same records; returns the state of the whole one."""
    whole = whole_run(config, tmp_path / "whole", *overrides)
    parts = interrupted_run(config, tmp_path / "parts", monkeypatch, *overrides, stops=stops)
    for key in whole.keys() - {"config"}:
        assert_same_bits(whole[key], parts[key], key)
    assert kept(tmp_path / "whole") == kept(tmp_path / "parts")
    return whole
