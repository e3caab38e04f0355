"""Decoupled dynamic filters: `ddf`, `ddf_up`, and their definitions, `ddf_reference` and `ddf_up_reference`."""

from ddfnet.ops.ddf import decompose  # noqa: F401  adds the operator to the decompositions
from ddfnet.ops.ddf.api import ddf, ddf_up
from ddfnet.ops.ddf.reference import ddf_reference, ddf_up_reference

__all__ = ["ddf", "ddf_reference", "ddf_up", "ddf_up_reference"]
