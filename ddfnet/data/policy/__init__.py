"""Policies of color and affine operations (RandAugment, AutoAugment, 3-Augment, TrivialAugment, color jitter).

They are drawn for whole batches, and applied in batched operations on any device or image by image through Pillow.
"""

from ddfnet.data.policy.batched import apply_policy
from ddfnet.data.policy.policy import Policy, fill_color
from ddfnet.data.policy.table import PolicyTable

__all__ = ["Policy", "PolicyTable", "apply_policy", "fill_color"]
