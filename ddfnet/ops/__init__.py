"""Operators: `ddf`, `ddf_up`, and their readable definitions, `ddf_reference` and `ddf_up_reference`."""

from ddfnet.ops import flops  # noqa: F401  registers the formulas
from ddfnet.ops.ddf import ddf, ddf_up
from ddfnet.ops.reference import ddf_reference, ddf_up_reference

__all__ = ["ddf", "ddf_reference", "ddf_up", "ddf_up_reference"]
