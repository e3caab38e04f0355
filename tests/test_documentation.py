"""What README and docs say is true: generated pages are current, paths exist, commands run."""

import itertools
import json
import re
import subprocess
import sys

import pytest

from ddfnet.utils import markdown
from scripts.dev import write_config_docs
from tests.conftest import ROOT
from tests.processes import launch_forked

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

README = (ROOT / "README.md").read_text()


def test_generated_pages_are_current():
    assert (ROOT / "docs/reference/config.md").read_text() == write_config_docs.page()
    text = (ROOT / "docs/reference/config.schema.json").read_text()
    assert text == write_config_docs.json_schema()
    assert "optim" in json.loads(text)["$defs"]["DetectionConfig"]["properties"]


def test_the_part_of_a_page_is_filled_in():
    page = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n"
    filled = "a\n<!-- begin x -->\n\n| n |\n| --- |\n| 1 |\n\n<!-- end x -->\nb\n"
    assert markdown.fill(page, {"x": markdown.table(["n"], [[1]])}) == filled
    with pytest.raises(ValueError, match="begin y"):
        markdown.fill(page, {"y": ""})


def test_every_command_is_in_the_list_of_commands():
    listed = (ROOT / "scripts/README.md").read_text()
    for path in (ROOT / "scripts").rglob("*.*"):
        name = path.relative_to(ROOT).as_posix().removesuffix("/__main__.py")
        if path.suffix == ".sh" or (path.suffix == ".py" and path.read_text().startswith("#!")):
            assert name in listed or name == "scripts/environment.sh", name


PAGES = ["README.md", "CONTRIBUTING.md", "kernels/README.md", "scripts/README.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_links_and_named_files_exist(page):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = re.findall(r"`((?:configs|scripts|tests|docs|ddfnet|kernels)/[\w./-]+\.\w+)`", text)
    named += re.findall(r"(?:bash|python) ((?:scripts|configs)/[\w./-]+)", text)
    for name in links:
        assert ((ROOT / page).parent / name).exists(), f"{page} links to {name}"
    for name in named:
        assert (ROOT / name).exists() or name == "configs/mine.yaml", f"{page} names {name}"


def test_requirements_and_pyproject_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    extras = [project["optional-dependencies"][name] for name in ("demo", "detection", "depth", "sources", "fast")]
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
        result = launch_forked("train.py", *arguments, "--print-config")
        assert result.returncode == 0, f"{line}: {result.stderr}"


def test_overrides_quoted_in_the_readme_are_valid():
    from ddfnet.tasks import load_config

    quoted = re.findall(r"`((?:[a-z_]+\.)+[a-z_]+=[^`]+)`", README)
    assert quoted
    for override in quoted:
        parts = re.findall(r'"[^"]+"|\S+', override)
        load_config(ROOT / "configs/ddf_resnet50.yaml", ["data.root=x", *(p.strip('"') for p in parts)])
