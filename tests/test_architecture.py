"""The rules of the house: imports point down, tasks stay in their folders, files stay small, words are the field's."""

import ast
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

# From the ground up. A part may import lower floors and itself; parts of one floor know nothing of each other.
FLOORS = [
    {"utils", "kernels"},
    {"config", "ops"},
    {"layers", "checkpoint", "optim"},
    {"data", "pages"},
    {"zoo", "evaluation"},
    {"models"},
    {"tasks", "inference"},
    {"engine"},
    {"__main__"},
]
# Every module of the package that asks for its version, or registers the models with timm, imports the package itself.
TOP = "__init__"
COMMON_CODE = ("engine", "data", "evaluation", "models")
TASK_WORDS = re.compile(r"(?<![a-z])(detect(ion|or)s?|depth|segment\w*|coco)(?![a-z])", re.IGNORECASE)
LONGEST = 300
# Files that may be longer, and why.
LONG_FILES = {"scripts/benchmarks/tiles.py": "one sweep: its variants, the processes that compile ahead, its table"}


def sources() -> dict[str, ast.Module]:
    """Every module of the package by its path below the root."""
    paths = [*(ROOT / "ddfnet").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}


def module_name(path: str) -> str:
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return name.replace("kernels.", "ddfnet.kernels.", 1) if name.startswith("kernels") else name


def imports(path: str, tree: ast.Module) -> set[str]:
    """Modules of this package that a file names in an import, wherever the import stands."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "ddfnet"}


def part(module: str) -> str:
    """The part of the package that a module belongs to: `ddfnet.data.sampler` -> `data`."""
    names = module.split(".")
    return names[1] if len(names) > 1 else TOP


def floor(name: str) -> int | None:
    return next((i for i, parts in enumerate(FLOORS) if name in parts), None)


def upward_imports(files: dict[str, ast.Module]) -> list[str]:
    wrong = []
    for path, tree in files.items():
        own = part(module_name(path))
        if path.endswith("__main__.py"):
            own = "__main__"
        for target in imports(path, tree):
            other = part(target)
            if own in (other, TOP) or floor(other) is None:  # `import ddfnet` and its public names
                continue
            if floor(other) >= floor(own):
                wrong.append(f"{path} imports {target}: {own} stands below or beside {other}")
    return wrong


def module_cycles(files: dict[str, ast.Module]) -> list[str]:
    """Modules that import each other, by imports at their top level; an import in a function runs later."""
    modules = {module_name(path): path for path in files}
    arrows = defaultdict(set)
    for name, path in modules.items():
        top = ast.Module([node for node in files[path].body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        for target in imports(path, top):
            found = target if target in modules else target.rpartition(".")[0]
            if found in modules and found not in (name, "ddfnet"):
                arrows[name].add(found)
    state: dict[str, int] = {}
    cycles = []

    def visit(name: str, trail: list[str]) -> None:
        state[name] = 1
        for target in sorted(arrows[name]):
            if state.get(target) == 1:
                cycles.append(" -> ".join([*trail[trail.index(target) :], target]))
            elif target not in state:
                visit(target, [*trail, target])
        state[name] = 2

    for name in sorted(modules):
        if name not in state:
            visit(name, [name])
    return cycles


def words_of(tree: ast.Module) -> list[str]:
    """Names and strings of the code; docstrings and comments may speak of tasks, code may not."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    words = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            words.append(node.id)
        elif isinstance(node, ast.Attribute):
            words.append(node.attr)
        elif isinstance(node, ast.arg | ast.keyword):
            words.append(node.arg or "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            words.append(node.value)
        elif isinstance(node, ast.ImportFrom):
            words.append(node.module or "")
    return words


def test_every_part_has_a_floor():
    parts = {path.stem for path in (ROOT / "ddfnet").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert {name for name in parts if floor(name) is None} <= {TOP, "__pycache__"}


def test_imports_point_down():
    assert upward_imports(sources()) == []


def test_there_are_no_circles():
    assert module_cycles(sources()) == []


def test_a_planted_arrow_up_and_a_planted_circle_are_found():
    planted = {
        "ddfnet/data/planted.py": ast.parse("from ddfnet.engine.train import train"),
        "ddfnet/data/one.py": ast.parse("from ddfnet.data.two import x"),
        "ddfnet/data/two.py": ast.parse("import ddfnet.data.one"),
    }
    assert upward_imports(planted) == [
        "ddfnet/data/planted.py imports ddfnet.engine.train.train: data stands below or beside engine"
    ]
    assert module_cycles(planted) == ["ddfnet.data.one -> ddfnet.data.two -> ddfnet.data.one"]


def test_the_common_code_names_no_task():
    wrong = [
        f"{path}: {word!r}"
        for path, tree in sources().items()
        if part(module_name(path)) in COMMON_CODE
        for word in words_of(tree)
        if TASK_WORDS.search(word)
    ]
    assert wrong == []


def test_detection_and_depth_do_not_know_each_other():
    for own, other in (("detection", "depth"), ("depth", "detection")):
        for path, tree in sources().items():
            if path.startswith(f"ddfnet/tasks/{own}/"):
                assert not any(name.startswith(f"ddfnet.tasks.{other}") for name in imports(path, tree)), path


def test_files_stay_small():
    paths = [*(ROOT / "ddfnet").rglob("*.py"), *(ROOT / "kernels").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert {path: size for path, size in sizes.items() if size > LONGEST and path not in LONG_FILES} == {}
    assert all(sizes.get(path, 0) > LONGEST for path in LONG_FILES)  # a file that shrank needs no exception


@pytest.mark.skipif(sys.platform == "win32", reason="copies with symbolic links")
def test_without_the_folder_of_detection_all_else_works(tmp_path, tiny_config):
    """Copy of the repository without one task: training, evaluation and the list of tasks."""
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "data", "__pycache__", "tests", "docs", "findings")
    shutil.copytree(ROOT, copy, ignore=ignored)
    shutil.copytree(ROOT / "ddfnet/data", copy / "ddfnet/data", dirs_exist_ok=True)  # not the ignored top-level data/
    shutil.rmtree(copy / "ddfnet/tasks/detection")
    env = {**environment(), "PYTHONPATH": str(copy)}

    folder = tmp_path / "run"
    training = ["train.py", "--config", str(tiny_config), f"run.dir={folder}", "train.epochs=1"]
    evaluation = ["eval.py", "--checkpoint", str(folder / "best.pt"), "--device", "cpu", "--workers", "0"]
    code = f"""
import runpy, sys
import ddfnet
from ddfnet.tasks import task_names
print(ddfnet.__file__, *task_names())
for command in {training}, {evaluation}:
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, command
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    names, *printed = done.stdout.splitlines()
    assert names.split() == [str(copy / "ddfnet/__init__.py"), "classification", "depth"]
    assert any("top-1" in line for line in printed)


# Words that the field does not use, with what it says instead. Proper names and quoted output are no exceptions:
# whoever needs one of these words writes around it.
WORDS = {
    r"pictur\w*": "image",
    r"learn(ed|t) by heart": "overfit",
    r"rivals?": "baseline",
    r"of ours": "of ddfnet, of this repository",
    r"go(es)? on\b(?! (the|a|one|each|every|to)\b)": "resume, continue",
    r"\w*(normalis|initialis|optimis|synchronis|recognis|quantis|summaris|serialis)\w*": "-ize",
    r"colour\w*": "color",
    r"centre\w*": "center",
    r"neighbour\w*": "neighbor",
    r"licences?": "license",
    r"behaviour\w*": "behavior",
    r"gr[e]y\w*": "gray",
}
PROSE = ("*.py", "*.md", "*.yaml", "*.sh", "*.toml")
# Measured results keep the words of their day.
OLD_TEXTS = ("docs/results/", "ddfnet/zoo/weights/", "findings/", "CHANGELOG.md", "tests/test_architecture.py")


def wrong_words(text: str) -> list[str]:
    return [
        f"{number}: {match[0]!r} (say {instead})"
        for number, line in enumerate(text.splitlines(), 1)
        for word, instead in WORDS.items()
        for match in [re.search(rf"(?<![a-z]){word}(?![a-z])", line, re.IGNORECASE)]
        if match
    ]


def texts() -> list[Path]:
    skipped = {".venv", ".git", "runs", "build", "dist", ".ruff_cache", ".pytest_cache", ".mypy_cache"}
    found = [path for pattern in PROSE for path in ROOT.rglob(pattern)]
    return [
        path
        for path in found
        if not skipped & set(path.relative_to(ROOT).parts[:1])
        and path.relative_to(ROOT).parts[0] != "data"
        and not str(path.relative_to(ROOT)).startswith(OLD_TEXTS)
    ]


def test_the_words_are_those_of_the_field():
    wrong = [f"{path.relative_to(ROOT)}:{word}" for path in texts() for word in wrong_words(path.read_text())]
    assert wrong == []


def test_a_planted_word_is_found():
    assert wrong_words("one\nA picture of the centre") == ["2: 'picture' (say image)", "2: 'centre' (say center)"]
    assert wrong_words("an image of the center; training resumes") == []
