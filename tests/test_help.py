"""`--help` of every command: fits a terminal of 80 columns, and comes at once where it needs no torch."""

import os
import runpy
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.py"), *(ROOT / "scripts").rglob("*.py"))
    if 'if __name__ == "__main__":' in (text := path.read_text()) and "ArgumentParser" in text
)
PARTS = {
    "scripts/visualize/__main__.py": ("filters", "explore", "detections", "depth", "curves", "operation"),
    "scripts/make_data.py": ("digits", "shapes", "scenes"),
}
MODULES = {
    "ddfnet": ("", "zoo", "checkpoint", "zoo list", "zoo info", "zoo download", "zoo verify", "zoo convert",
               "checkpoint list", "checkpoint average", "checkpoint export", "checkpoint rewind"),
    "ddfnet.zoo": ("", "convert"),
}  # fmt: skip
# Those for users.
QUICK = ("train.py", "eval.py", "scripts/check_data.py", "scripts/prepare_images.py", "scripts/predict.py",
         "scripts/export.py", "scripts/publish_weights.py", "scripts/make_data.py",
         "scripts/visualize/__main__.py")  # fmt: skip


def too_wide(text):
    return [line for line in text.splitlines() if len(line) > 80]


@pytest.fixture
def help_of(monkeypatch, capsys):
    """The help of a command that is run in this process."""

    def _help(run, *arguments):
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(sys, "argv", ["command", *arguments, "--help"])
        with pytest.raises(SystemExit) as stopped:
            run()
        assert stopped.value.code == 0
        return capsys.readouterr().out

    return _help


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_of_scripts_fits_80_columns(script, help_of, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)  # train.py sets handlers
    for part in ("", *PARTS.get(script, ())):
        text = help_of(lambda: runpy.run_path(str(ROOT / script), run_name="__main__"), *part.split())
        assert "usage:" in text
        assert too_wide(text) == []


@pytest.mark.parametrize("module", MODULES)
def test_help_of_the_package_fits_80_columns(module, help_of, monkeypatch):
    monkeypatch.delitem(sys.modules, f"{module}.__main__", raising=False)  # else runpy warns
    for part in MODULES[module]:
        text = help_of(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True), *part.split())
        assert "usage:" in text
        assert too_wide(text) == []


def test_a_planted_line_is_too_wide():
    assert too_wide("a" * 80 + "\n" + "b" * 81) == ["b" * 81]


@pytest.mark.parametrize("script", QUICK)
def test_help_for_users_comes_without_torch(script):
    probe = f"import runpy, sys; sys.argv = [{script!r}, '--help']\n"
    probe += f"try: runpy.run_path({script!r}, run_name='__main__')\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize("arguments", ["--help", "zoo --help", "zoo convert -h", "checkpoint rewind --help"])
def test_help_of_the_package_comes_without_torch(arguments, tmp_path):
    def with_broken_torch(*command):
        (tmp_path / "torch.py").write_text("raise RuntimeError('torch is imported')")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
        command = [sys.executable, "-m", *command]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = with_broken_torch("ddfnet", *arguments.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: python -m ddfnet" in done.stdout
    assert "torch is imported" in with_broken_torch("ddfnet", "zoo", "list").stderr
