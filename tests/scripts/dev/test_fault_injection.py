"""The attacks in their short form: one of each that needs no rights."""

import json
import sys

import pytest

from scripts.dev import fault_hangs, fault_injection, fault_nodes, fault_runs
from scripts.dev.fault_runs import Attack, Run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes of Linux")


@pytest.fixture(scope="module")
def forks():
    """One process for all attacks of this module from which runs are forked: its imports take longer than the runs."""
    started, start = [], fault_runs._start_forks

    def one(environment):
        if not started:
            started.append(start(environment))
        return started[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fault_runs, "_start_forks", one)
        patch.setattr(Attack, "close", lambda self: None)
        yield
    for process in started:
        process.communicate()
        assert process.returncode == 0


@pytest.fixture
def no_forks(monkeypatch):
    """For attacks that start no run."""
    monkeypatch.setattr(fault_runs, "_start_forks", lambda environment: None)
    monkeypatch.setattr(Attack, "close", lambda self: None)


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("attack", ["kills", "files"])
def test_a_few_attacks_in_parts_that_add_up(attack, tmp_path, capfd):
    record = ["--record", str(tmp_path / "faults.jsonl")]
    assert fault_injection.main([attack, "--first", "1", "--count", "2", "--processes", "1", *record]) == 0
    assert "2 of 2 as they must be" in capfd.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert [(line["attack"], line["index"], line["ok"]) for line in lines] == [(attack, 1, True), (attack, 2, True)]
    assert fault_injection.main(["report", *record]) == 0
    assert f"## {attack}: 2 of 2 as they must be" in capfd.readouterr().out


@pytest.mark.usefixtures("no_forks")
def test_an_attack_does_not_depend_on_those_before(tmp_path):
    attack = Attack(tmp_path, workers=0, processes=1, seed=3)
    attack.begin(7)
    first = attack.random.random()
    attack.begin(6)
    attack.random.random()
    attack.begin(7)
    assert attack.random.random() == first


@pytest.mark.usefixtures("no_forks")
def test_a_run_that_ends_otherwise_is_counted(monkeypatch, capfd):
    monkeypatch.setattr(fault_injection, "same_run", lambda *_: False)
    monkeypatch.setattr(Attack, "whole", lambda self: self.folder)
    monkeypatch.setattr(Attack, "finish", lambda self, target: (0, "Traceback"))
    monkeypatch.setattr(Attack, "until_step", lambda *_: True)
    monkeypatch.setattr(Attack, "start", lambda self, target: target.mkdir() or Run(2**30, target))
    monkeypatch.setattr(Run, "end", lambda _: (0, ""))
    monkeypatch.setattr(fault_injection, "CASES", [("last.pt", "nothing", lambda path, rng: None)])
    assert fault_injection.main(["files", "--count", "1"]) == 1
    assert "0 of 1 as they must be" in capfd.readouterr().out


@pytest.mark.slow
def test_all_hangs_end_by_name(capfd):
    """Stopped workers and processes, images that become FIFOs: by `run.timeout`, and by SIGTERM."""
    assert fault_injection.main(["hangs", "--count", str(len(fault_hangs.ALL))]) == 0, capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not fault_nodes.can_make_namespaces(), reason="needs root and network namespaces")
def test_two_machines(capfd):
    """The link between them is down for 15 s; each of them dies, with and without a word."""
    assert fault_injection.main(["nodes", "--count", str(len(fault_nodes.KINDS))]) == 0, capfd.readouterr().out
