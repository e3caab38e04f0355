"""The attacks in their short form: one of each that needs no rights."""

import sys

import pytest

from scripts.dev import fault_injection

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes of Linux")


@pytest.mark.parametrize("attack", ["kills", "files"])
def test_a_few_attacks(attack, capfd):
    assert fault_injection.main([attack, "--count", "2", "--workers", "0"]) == 0
    assert "2 of 2 as they must be" in capfd.readouterr().out


def test_a_run_that_ends_otherwise_is_counted(monkeypatch, capfd):
    monkeypatch.setattr(fault_injection, "same_run", lambda *_: False)
    monkeypatch.setattr(fault_injection.Attack, "finish", lambda self, target: (0, "Traceback"))
    monkeypatch.setattr(fault_injection.shutil, "copytree", lambda _, target: target.mkdir())
    monkeypatch.setattr(fault_injection, "MUTATIONS", [lambda path, rng: None])
    fault_injection.MUTATIONS[0].__name__ = "_none"
    assert fault_injection.main(["files", "--count", "1"]) == 1
    assert "0 of 1 as they must be" in capfd.readouterr().out
