"""The CPU implementations of the operators: tests that ask for `each_path` run once on each."""

import pytest
import torch

from ddfnet.ops.ddf import native


def native_code() -> None:
    """Skips the test where there is no native code to test."""
    for dtype in (torch.float32, torch.float64):
        library = native._library(dtype)
        if isinstance(library, str):
            pytest.skip(f"no native code: {library}")


@pytest.fixture(params=["native", "PyTorch"])
def each_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "native":
        native_code()
    else:
        monkeypatch.setattr(native, "is_usable", lambda *arguments: False)
    return request.param


@pytest.fixture
def built() -> None:
    native_code()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
