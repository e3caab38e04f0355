"""Layers with content-adaptive filters."""

from ddfnet.layers.bam import BAM
from ddfnet.layers.carafe import CARAFE
from ddfnet.layers.ddf import DDF
from ddfnet.layers.ddf_up import DDFUp
from ddfnet.layers.dynamic_depthwise import CondConv, DepthwiseCondConv, DepthwiseWeightNet
from ddfnet.layers.filter_norm import FilterNorm
from ddfnet.layers.involution import Involution

__all__ = [
    "BAM",
    "CARAFE",
    "DDF",
    "CondConv",
    "DDFUp",
    "DepthwiseCondConv",
    "DepthwiseWeightNet",
    "FilterNorm",
    "Involution",
]
