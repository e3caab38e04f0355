"""What README and docs say is true: generated pages are current, paths exist, commands run."""

import itertools
import json
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

README = (ROOT / "README.md").read_text()


def test_generated_pages_are_current(tmp_path):
    before = {name: (ROOT / "docs" / name).read_text() for name in ("config.md", "config.schema.json")}
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from scripts.dev import write_config_docs
    finally:
        sys.path.pop(0)
    assert before["config.md"] == write_config_docs.markdown()
    assert before["config.schema.json"] == write_config_docs.json_schema()
    schema = json.loads(before["config.schema.json"])
    assert "optim" in schema["$defs"]["DetectionConfig"]["properties"]


PAGES = ["README.md", "CONTRIBUTING.md", "kernels/README.md"]
PAGES += [f"docs/{name}.md" for name in ("MODEL_ZOO", "config", "export", "interop", "paper", "precision")]
PAGES += [f"docs/{name}.md" for name in ("small_study", "tasks")]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_named_files_exist(page):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = re.findall(r"`((?:configs|scripts|tests|docs|ddfnet|kernels)/[\w./-]+\.\w+)`", text)
    named += re.findall(r"(?:bash|python) ((?:scripts|configs)/[\w./-]+)", text)
    for name in links:
        assert ((ROOT / page).parent / name).exists(), f"{page} links to {name}"
    for name in named:
        assert (ROOT / name).exists(), f"{page} names {name}"


def test_requirements_and_pyproject_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    extras = [project["optional-dependencies"][name] for name in ("demo", "detection", "depth")]
    assert required == {*project["dependencies"], *itertools.chain(*extras)}


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_blocks_of_the_readme_run(block):
    result = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_training_commands_of_the_readme_are_accepted(image_tree):
    """Each train.py line, with its data root replaced, resolves (and fails on nothing but the data)."""
    joined = README.replace("\\\n", " ")
    commands = [line for line in re.findall(r"[^\n`]*train\.py --config[^\n`#]*", joined) if "configs/" in line]
    assert len(commands) >= 5
    seen = set()
    for line in commands:
        arguments = line.split("train.py", 1)[1].split()
        arguments = [a for a in arguments if a not in ("--dry-run", "--print-config")]
        if tuple(arguments) in seen:
            continue
        seen.add(tuple(arguments))
        command = [sys.executable, str(ROOT / "train.py"), *arguments, "--print-config"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{line}: {result.stderr}"


def test_overrides_quoted_in_the_readme_are_valid():
    from ddfnet.tasks import load_config

    quoted = re.findall(r"`((?:[a-z_]+\.)+[a-z_]+=[^`]+)`", README)
    assert quoted
    for override in quoted:
        parts = re.findall(r'"[^"]+"|\S+', override)
        load_config(ROOT / "configs/ddf_resnet50.yaml", ["data.root=x", *(p.strip('"') for p in parts)])
