"""Which files of tests start first."""

from types import SimpleNamespace

from tests.conftest import LONG, ROOT, pytest_collection_modifyitems


def test_long_files_come_first_then_those_of_many_tests():
    given = ["a.py::x", "b.py::x", "b.py::y", *(f"{file}::x" for file in reversed(LONG)), "c.py::x", "c.py::y"]
    items = [SimpleNamespace(nodeid=nodeid) for nodeid in given]
    pytest_collection_modifyitems(items)
    files = [*LONG, "b.py", "b.py", "c.py", "c.py", "a.py"]
    assert [item.nodeid.partition("::")[0] for item in items] == files
    assert [item.nodeid for item in items if item.nodeid.startswith("b.py")] == ["b.py::x", "b.py::y"]


def test_long_files_are_there():
    assert all((ROOT / file).is_file() for file in LONG)
