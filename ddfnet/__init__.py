"""ddfnet: decoupled dynamic filters (DDF, CVPR 2021) in PyTorch.

Importing the package registers its models with timm.
"""

import gc
import sys


def _is_asked_for_help() -> bool:
    """Whether this is `python -m ddfnet ... --help`, which imports the package first and need not wait for torch."""
    being_located = sys.argv[:1] == ["-m"]  # Python puts the path of the command there before it runs it
    return being_located and sys.orig_argv[-len(sys.argv)] == "ddfnet" and not {"-h", "--help"}.isdisjoint(sys.argv)


if not _is_asked_for_help():
    # Imports make a million objects, and all of them stay: to look for garbage among them meanwhile takes a second.
    _collecting = gc.isenabled()
    gc.disable()
    try:
        from ddfnet.inference.compiled import load_compiled
        from ddfnet.layers import CARAFE, DDF, DDFUp, FilterNorm, Involution
        from ddfnet.models import create_model, list_models
        from ddfnet.ops.compile_ahead import compile_ahead
        from ddfnet.ops.ddf import ddf, ddf_up
    finally:
        if _collecting:
            gc.enable()
        del _collecting

__version__ = "0.1.0"

__all__ = [
    "CARAFE",
    "DDF",
    "DDFUp",
    "FilterNorm",
    "Involution",
    "__version__",
    "compile_ahead",
    "create_model",
    "ddf",
    "ddf_up",
    "list_models",
    "load_compiled",
]
