"""The Triton sources are importable as `ddfnet.kernels.<file>` only, and `import ddfnet.ops` works without Triton."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def run(code, *paths):
    """Run `code` in a fresh interpreter in the repository root, with `paths` on the import path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), str(ROOT)])}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_importing_the_operators_claims_no_module_named_kernels():
    code = "import sys, ddfnet.ops; print('kernels' in sys.modules, 'ddfnet.kernels.ddf_forward' in sys.modules)"
    assert run(code) == ["False", "False"]  # nor are the kernels imported before they are needed


def test_a_package_named_kernels_is_found_beside_the_folder(tmp_path):
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("owner = 'somebody else'\n")
    code = "import ddfnet.ops, kernels; print(kernels.owner)"
    # the current directory, which holds our folder, comes first on the path of `python -c`
    assert run(code, tmp_path) == ["somebody", "else"]


def test_the_operator_works_without_triton():
    code = """
import sys
sys.modules["triton"] = None  # as on macOS: no such module
import torch
from ddfnet.ops.ddf import ddf, ddf_reference
x = torch.randn(2, 4, 6, 5, requires_grad=True)
channel, spatial = torch.randn(2, 4, 3, 3), torch.randn(2, 9, 6, 5)
y = ddf(x, channel, spatial)
y.sum().backward()
compiled = torch.compile(ddf, fullgraph=True, backend="aot_eager")(x, channel, spatial)
print(torch.allclose(y, ddf_reference(x, channel, spatial), atol=1e-5), torch.equal(y, compiled), x.grad is not None)
"""
    assert run(code) == ["True", "True", "True"]
