"""ddfnet: decoupled dynamic filters (DDF, CVPR 2021) in PyTorch.

Importing the package registers its models with timm.
"""

from ddfnet.inference.compiled import load_compiled
from ddfnet.layers import CARAFE, DDF, DDFUp, FilterNorm, Involution
from ddfnet.models import create_model, list_models
from ddfnet.ops.compile_ahead import compile_ahead
from ddfnet.ops.ddf import ddf, ddf_up

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
