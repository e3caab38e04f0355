"""File formats of exported classifiers, a module each; with what is common to them.

A module has
- `SUFFIX`: of the file;
- `PACKAGES`: what has to be installed, by the name to import: the name to install;
- `ANY_BATCH`: whether a file can take any batch size;
- `save(program, path, about)`: writes a traced program; `about`, strings by name, goes into the file;
- `load(path)`: the file in its own runtime, as a function from images (B, 3, size, size) to logits (B, classes).
"""

import importlib
import importlib.util
from types import ModuleType

INPUT, OUTPUT = "image", "logits"
ABOUT = "ddfnet.json"  # the file with `about`, in an archive
_MODULES = {
    "torch": "torch_program",
    "onnx": "onnx_file",
    "aoti": "aot_inductor",
    "executorch": "executorch_program",
    "openvino": "openvino_ir",
    "litert": "litert_model",
    "coreml": "core_ml",
}
FORMATS = tuple(_MODULES)


def find_format(name: str) -> ModuleType:
    """The module of a format; its packages are imported no sooner than they are needed."""
    return importlib.import_module(f"ddfnet.inference.formats.{_MODULES[name]}")


def missing_packages(name: str) -> list[str]:
    """What has to be installed for a format, and is not."""
    packages: dict[str, str] = find_format(name).PACKAGES
    return [package for module, package in packages.items() if not _installed(module)]


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # sys.modules holds None for it
        return False
