"""Operators: `ddf` and its readable definition, `ddf_reference`."""

from ddfnet.ops.ddf import ddf
from ddfnet.ops.reference import ddf_reference

__all__ = ["ddf", "ddf_reference"]
