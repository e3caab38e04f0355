"""`python -m ddfnet.zoo` as people meet it: five commands, 80 columns, exit codes 0, 1, 2."""

import argparse
import hashlib
import re
import runpy
import sys

import pytest
import torch

import ddfnet
from ddfnet.__main__ import zoo_arguments
from ddfnet.inference.zoo_command import main
from ddfnet.utils.cli import run
from ddfnet.utils.text import plural
from ddfnet.zoo import File, entries, file_path, find
from ddfnet.zoo.entries import Entry

NAME = "ddf_mul_resnet14_32px"


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs a command with an empty cache; returns (exit code, stdout, stderr)."""
    monkeypatch.setenv("DDFNET_CACHE", str(tmp_path / "cache"))

    def _call(*arguments):
        with pytest.raises(SystemExit) as stopped:
            run(lambda: main(zoo_arguments([str(argument) for argument in arguments])))
        out = capsys.readouterr()
        assert "Traceback" not in out.err
        return stopped.value.code, out.out, out.err

    return _call


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A small official checkpoint that the zoo knows, as a file in its cache."""
    template = find("ddf_mul_resnet50")
    fields = {key: getattr(template, key) for key in Entry.__dataclass_fields__}
    entry = Entry(**{**fields, "model": NAME, "tag": "test", "file": File()})
    monkeypatch.setitem(find.__globals__, "_ENTRIES", (template, entry))
    path = file_path(entry, tmp_path / "cache")
    path.parent.mkdir()
    weights = ddfnet.create_model(NAME, num_classes=5).state_dict()
    torch.save({"state_dict": weights, "args": argparse.Namespace(lr=0.4)}, path)
    return path


def wide(text, allowed=()):
    return [line for line in text.splitlines() if len(line) > 80 and not any(word in line for word in allowed)]


def test_the_module_runs_and_its_errors_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/ddfnet/zoo/__main__.py", "info", "ddf_mul_resnet51"])
    monkeypatch.delitem(sys.modules, "ddfnet.zoo.__main__", raising=False)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("ddfnet.zoo", run_name="__main__", alter_sys=False)
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("ddfnet.zoo: error: the zoo has no weights 'ddf_mul_resnet51': did you mean")
    assert err.count("\n") == 1


def test_a_wrong_command_and_help(call):
    code, _, err = call("lst")
    assert code == 2
    assert "invalid choice" in err
    code, out, _ = call("--help")
    assert code == 0
    for word in ("list", "info", "download", "verify", "convert", "Exit codes"):
        assert word in out


def test_list(call):
    code, out, _ = call("list")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["ddf_mul_resnet101.official_in1k", "80.5", "claimed", "gdown", "no"] in rows
    assert ["ddf_add_resnet101.official_in1k", "79.9", "claimed", "by", "hand", "no"] in rows
    assert ["ddf_mul_resnet14_32px.digits", "98.05", "verified", "shipped", "yes"] in rows
    assert not wide(out, ("cache",))


@pytest.mark.parametrize("name", ["ddf_mul_resnet50", "ddf_add_resnet101.official_in1k"])
def test_info(call, name):
    code, out, _ = call("info", name)
    assert code == 0
    for word in ("claimed by the authors, not measured here", "224 px, crop 0.875, bicubic", "sha256", "license"):
        assert word in out
    assert ("https://drive.google.com/uc?id=14voC" in out) == (name == "ddf_mul_resnet50")
    assert ("Baidu" in out) == (name != "ddf_mul_resnet50")
    assert not wide(out, ("cache",))


def test_download_of_what_is_there_verifies_it(call, small):
    code, out, _ = call("download", NAME)
    assert code == 0
    digest = hashlib.sha256(small.read_bytes()).hexdigest()
    assert out == f"{small}\nsha256 {digest} (none was published: recorded when first seen)\n"
    assert call("list")[1].count(" yes\n") == 1
    small.write_bytes(small.read_bytes() + b"changed")
    code, _, err = call("download", NAME)
    assert code == 2
    assert digest in err


def test_download_into_another_folder_by_hand_only(call, tmp_path):
    code, _, err = call("download", "ddf_add_resnet101", "--cache", tmp_path / "other")
    assert code == 2
    assert str(tmp_path / "other") in err
    assert "cannot be downloaded by a program" in err


def test_verify(call, small):
    code, out, _ = call("verify")
    assert code == 0
    assert f"ok      {NAME}.test: " in out
    assert "parameters" in out
    assert not wide(out, ("cache",))
    code, _, err = call("verify", "ddf_mul_resnet50")
    assert code == 2
    assert "python -m ddfnet.zoo download ddf_mul_resnet50.official_in1k" in err


def test_verify_finds_changed_files_and_wrong_weights(call, small):
    assert call("verify", NAME)[0] == 0
    torch.save(ddfnet.create_model("resnet14_32px", num_classes=5).state_dict(), small)
    code, out, _ = call("verify")
    assert code == 1
    assert f"FAILED  {NAME}.test" in out
    assert "as recorded in" in " ".join(out.split())
    small.with_name(small.name + ".sha256").unlink()
    code, out, _ = call("verify")
    assert code == 1
    assert "does not hold weights of" in " ".join(out.split())
    assert "1 file," in out


def test_verify_of_an_empty_cache_finds_what_ships(call):
    shipped = [entry.name for entry in entries() if entry.file.shipped]
    code, out, _ = call("verify")
    assert code == 0
    assert re.findall(r"^ok +(\S+):", out, re.MULTILINE) == shipped
    assert out.endswith(f"{plural(len(shipped), 'file')}, 0 failed\n")


def test_convert(call, small, tmp_path):
    target = tmp_path / "w.safetensors"
    code, out, _ = call("convert", small, target, "--model", NAME)
    assert code == 0
    assert "parameters" in out
    assert hashlib.sha256(target.read_bytes()).hexdigest() in out
    code, _, err = call("convert", small, tmp_path / "v.safetensors", "--model", "resnet14_32px")
    assert code == 2
    assert "does not hold weights of resnet14_32px" in err
