"""The wheel carries the Triton sources as ddfnet.kernels, and a package named `kernels` keeps working beside us."""

import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT

PROBE = """
import sys, pathlib
import ddfnet, ddfnet.kernels, kernels
assert kernels.OWNER == "somebody else", kernels
import importlib.util
found = importlib.util.find_spec("ddfnet.kernels.ddf_forward")
assert found is not None, "no Triton sources"
print(pathlib.Path(ddfnet.__file__).parent)
print(found.origin)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling", reason="building needs hatchling: pip install -e .[test]")
    pytest.importorskip("build", reason="building needs build: pip install -e .[test]")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(folder.glob("*.whl"))


def stand_in(folder):
    """A regular package named like our top-level folder, as Hugging Face's is."""
    (folder / "kernels").mkdir(parents=True)
    (folder / "kernels" / "__init__.py").write_text('OWNER = "somebody else"\n')


def test_wheel_contains_package_and_kernels_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"ddfnet/__init__.py", "ddfnet/kernels/__init__.py"} <= names
    for source in (ROOT / "kernels").glob("*.py"):
        assert f"ddfnet/kernels/{source.name}" in names
    weights = list((ROOT / "ddfnet" / "zoo" / "weights").glob("*.safetensors"))
    assert weights
    native = [*(ROOT / "ddfnet").rglob("*.c"), *(ROOT / "ddfnet").rglob("*.h")]
    assert native
    pages = list((ROOT / "ddfnet" / "pages" / "assets").iterdir())
    assert {path.suffix for path in pages} == {".css", ".j2", ".js"}
    for source in [*(ROOT / "ddfnet").rglob("*.py"), *weights, *native, *pages]:
        assert str(source.relative_to(ROOT)) in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ddfnet"}


def test_installed_wheel_works_beside_a_package_named_kernels(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)  # what installing a pure Python wheel does
    stand_in(site)
    probe = f"import sys; sys.path.insert(0, {str(site)!r})\n{PROBE}"
    result = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    package, kernel = result.stdout.split()
    assert package == str(site / "ddfnet")
    assert kernel == str(site / "ddfnet" / "kernels" / "ddf_forward.py")


def test_checkout_works_beside_a_package_named_kernels(tmp_path):
    stand_in(tmp_path)
    probe = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]\n{PROBE}"
    result = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[1] == str(ROOT / "kernels" / "ddf_forward.py")


def test_nothing_in_the_tree_imports_the_other_package():
    for path in [*ROOT.glob("*.py"), *(ROOT / "ddfnet").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        for line in path.read_text().splitlines():
            assert not line.strip().startswith(("import kernels", "from kernels")), path
