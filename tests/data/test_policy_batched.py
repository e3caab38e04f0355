"""Batched operations of policies against Pillow's, image by image."""

import numpy as np
import policy_cases as cases
import pytest
import torch
from PIL import Image

from ddfnet.data.augment import AugmentConfig
from ddfnet.data.policy import Policy, apply_policy, batched
from ddfnet.data.policy.pillow import apply_op
from ddfnet.data.policy.pixels import BY_VALUE
from ddfnet.data.policy.table import Op
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.rng import POLICY, uniforms

EXACT = {op for op, _ in cases.CASES if op not in cases.AFFINE}


def levels_apart(batch, reference):
    """Differences of a batch (B, 3, H, W) and images (B, H, W, 3), int."""
    return abs(batch.permute(0, 2, 3, 1).numpy().astype(int) - np.asarray(reference).astype(int))


@pytest.mark.parametrize("size", [64, 37, 3, 2, 1])
@pytest.mark.parametrize(("op", "mode"), cases.CASES, ids=cases.ids)
def test_every_operation_has_pillows_pixels(op, mode, size):
    pixels = cases.images(size)
    table = cases.table(op, mode, len(pixels), size)
    made = apply_policy(cases.channels_first(pixels), table, cases.FILL)
    reference = [
        np.asarray(apply_op(Image.fromarray(one), op, float(value), mode, cases.FILL))
        for one, value in zip(pixels, table[:, 0, 1], strict=True)
    ]
    apart = levels_apart(made, reference)
    assert apart.max() <= (0 if op in EXACT else 1)
    if size > 3:
        assert (apart > 0).mean() < 1e-3
        assert (np.asarray(reference) != pixels).any((1, 2, 3)).sum() > len(pixels) // 3


@pytest.mark.parametrize("shape", [(24, 40), (41, 23)])
def test_images_need_not_be_square(shape):
    """Pillow turns by 90 degrees another way there, with the same pixels."""
    pixels = cases.images(41)[:, : shape[0], : shape[1]]
    for op, mode in cases.CASES:
        table = cases.table(op, mode, len(pixels), 24)
        made = apply_policy(cases.channels_first(pixels), table, cases.FILL)
        reference = [
            np.asarray(apply_op(Image.fromarray(one), op, float(value), mode, cases.FILL))
            for one, value in zip(pixels, table[:, 0, 1], strict=True)
        ]
        assert levels_apart(made, reference).max() <= 1, op.name


def batch_of(recipe, count=48, size=40, **options):
    if recipe == "trivial":
        options["trivial_augment"], recipe = True, None
    policy = Policy.of(AugmentConfig(rand_augment=recipe, **options), Preprocessing(size=size))
    table = policy.draw(uniforms(POLICY, 0, 0, range(count), [0] * count, policy.count))
    return policy, cases.images(size, count), table


@pytest.mark.parametrize(
    "recipe", [None, "trivial", "rand-m9-n3-mstd0.5-p1", "rand-m7-mstd0.5-inc1", "rand-m9-inc1-t3aw-n3", "v0", "3a"]
)
def test_layers_follow_one_another_as_through_pillow(recipe):
    policy, pixels, table = batch_of(recipe)
    # One layer at a time from the same images: differences of 1 level would add up, and equalize multiplies them.
    for layer in range(table.shape[1]):
        one = table[:, layer : layer + 1]
        made = apply_policy(cases.channels_first(pixels), one, policy.fill)
        reference = [np.asarray(policy.apply(Image.fromarray(image), one, row)) for row, image in enumerate(pixels)]
        apart = levels_apart(made, reference)
        assert apart.max() <= 1
        assert (apart > 0).mean() < 1e-3
        pixels = np.stack(reference)
    first = batch_of(recipe)[1]
    whole = levels_apart(apply_policy(cases.channels_first(first), table, policy.fill), pixels)
    assert (whole > 1).mean() < 1e-3
    assert (pixels != first).any((1, 2, 3)).mean() > 0.5


def test_images_do_not_depend_on_their_batch_nor_on_the_chunks(monkeypatch):
    policy, pixels, table = batch_of("rand-m9-n2-p1-mstd0.5")
    whole = apply_policy(cases.channels_first(pixels), table, policy.fill)
    part = apply_policy(cases.channels_first(pixels[9:21]), table[9:21], policy.fill)
    assert torch.equal(part, whole[9:21])
    for memory in (1, 10**6, 10**9):
        monkeypatch.setitem(batched._MEMORY, "cpu", memory)
        assert torch.equal(apply_policy(cases.channels_first(pixels), table, policy.fill), whole)


def test_any_strides_and_the_input_is_left_alone():
    policy, pixels, table = batch_of("rand-m9-n2-p1")
    images = cases.channels_first(pixels)
    before = images.clone()
    whole = apply_policy(images, table, policy.fill)
    assert torch.equal(images, before)
    assert whole.dtype == torch.uint8
    assert whole.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(apply_policy(images.contiguous(), table, policy.fill), whole)
    assert torch.equal(apply_policy(images, torch.from_numpy(table), policy.fill), whole)
    untouched = apply_policy(images, np.zeros_like(table), policy.fill)
    assert torch.equal(untouched, images)
    assert untouched.data_ptr() != images.data_ptr()


def test_a_table_of_augmix_is_refused():
    policy, pixels, table = batch_of("augmix")
    with pytest.raises(ValueError, match="AugMix has no batched form"):
        apply_policy(cases.channels_first(pixels), table, policy.fill)


def test_wrong_arguments_are_refused():
    policy, pixels, table = batch_of("rand")
    images = cases.channels_first(pixels)
    with pytest.raises(ValueError, match=r"uint8 \(B, 3, H, W\), got torch.float32"):
        apply_policy(images.float(), table, policy.fill)
    with pytest.raises(ValueError, match=r"got torch.uint8 \(48, 40, 40, 3\)"):
        apply_policy(torch.from_numpy(pixels), table, policy.fill)
    with pytest.raises(ValueError, match=r"table must be \(47, layers, 3\) for 47 images, got \(48, 2, 3\)"):
        apply_policy(images[:47], table, policy.fill)


def test_every_operation_has_a_kernel():
    assert {op for op, _ in cases.CASES} == {*Op} - {Op.IDENTITY, Op.AUGMIX}
    assert {*BY_VALUE, *batched._BY_IMAGE, *cases.AFFINE} == {*Op} - {Op.IDENTITY, Op.AUGMIX}
