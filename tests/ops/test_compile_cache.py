"""torch.compile's cache on disk after a change to an operator."""

import os
import shutil
import subprocess
import sys

import pytest

from ddfnet.ops import compile_cache
from tests.conftest import ROOT

# Eager, compiled, whether the cache served the compiled one, and the key tag.
SCRIPT = """
import torch
torch.compiler.config.cache_key_tag = "mine"
import ddfnet
from torch._dynamo.utils import counters
torch.manual_seed(0)
inputs = torch.rand(1, 2, 3, 3), torch.rand(1, 2, 1, 1), torch.rand(1, 1, 3, 3)
with torch.no_grad():
    compiled = torch.compile(ddfnet.ddf, fullgraph=True)(*inputs)
    hits = counters["aot_autograd"]["autograd_cache_hit"] + counters["inductor"]["fxgraph_cache_hit"]
    print(ddfnet.ddf(*inputs).sum().item(), compiled.sum().item(), int(hits > 0), torch.compiler.config.cache_key_tag)
"""


@pytest.fixture
def run(tmp_path):
    for folder in ("ddfnet", "kernels"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))

    def run():
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
        environment |= {"DDFNET_NATIVE": "0"}  # the code that Inductor sees
        # what takes longer than it saves in so little code
        environment |= {"TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0", "TORCHINDUCTOR_VEC_ISA_OK": "0"}
        for name in ("TORCHINDUCTOR_FX_GRAPH_CACHE", "TORCHINDUCTOR_AUTOGRAD_CACHE"):
            environment[name] = "1"
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr[-2000:]
        eager, compiled, hit, tag = result.stdout.split()
        return float(eager), float(compiled), hit == "1", tag

    return run


def test_the_hash_does_not_depend_on_the_order_of_a_folder(tmp_path, monkeypatch):
    hashes = []
    for order in (1, -1):
        folder = tmp_path / str(order)
        for name in ["a/same.py", "b/same.py", "b/other.py"][::order]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
        monkeypatch.setattr(compile_cache, "__file__", str(folder / "module.py"))
        hashes.append(compile_cache.source_hash())
    assert hashes[0] == hashes[1]
    (folder / "a" / "same.py").write_text("changed")
    assert compile_cache.source_hash() != hashes[0]


def test_a_changed_operator_is_compiled_again(run, tmp_path):
    first, again = run(), run()
    assert first[0] == pytest.approx(first[1])
    assert (first[2], again[2]) == (False, True)  # the cache works, or this test says nothing
    assert first[3].startswith("mineddfnet-")
    source = tmp_path / "ddfnet" / "ops" / "ddf" / "eager.py"
    text = source.read_text()
    assert text.count("return total.flatten") == 1
    source.write_text(text.replace("return total.flatten", "return 2 * total.flatten"))
    changed = run()
    assert changed[0] == pytest.approx(2 * first[0])
    assert changed[1] == pytest.approx(changed[0])
    assert changed[3] != first[3]
