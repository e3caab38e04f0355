import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import Mixup

from ddfnet.data.augment import AugmentConfig
from ddfnet.data.batches import EvalBatchTransform, TrainBatchTransform
from ddfnet.data.policy import Policy
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.rng import BATCH, POLICY, entry_key, keyed_generators, uniforms

PREPROCESSING = Preprocessing(size=16, mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.5))


def batch(epoch=0, first=5, size=8, key=0, repeat=0):
    generator = torch.Generator().manual_seed(key)
    return {
        "image": torch.randint(0, 256, (size, 3, 16, 16), dtype=torch.uint8, generator=generator),
        "target": torch.arange(size) % 4,
        "index": torch.arange(first, first + size),
        "repeat": torch.full((size,), repeat),
        "epoch": epoch,
    }


def transform(seed=0, label_smoothing=0.0, channels_last=False, device="cpu", **augment):
    return TrainBatchTransform(
        PREPROCESSING,
        AugmentConfig(**augment),
        device=device,
        seed=seed,
        num_classes=4,
        label_smoothing=label_smoothing,
        channels_last=channels_last,
    )


def by_hand(images):
    mean = np.array(PREPROCESSING.mean).reshape(1, 3, 1, 1)
    std = np.array(PREPROCESSING.std).reshape(1, 3, 1, 1)
    return (images.numpy().astype(np.float64) / 255 - mean) / std


def global_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.default_generator.get_state().tolist()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("stored_channels_last", [False, True])
def test_normalization_formula_and_memory_format(channels_last, stored_channels_last):
    one = batch()
    if stored_channels_last:
        one["image"] = one["image"].to(memory_format=torch.channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for made in (
        EvalBatchTransform(PREPROCESSING, device="cpu", channels_last=channels_last)(one),
        transform(channels_last=channels_last)(one),
    ):
        assert made["image"].dtype == torch.float32
        assert made["image"].is_contiguous(memory_format=memory_format)
        np.testing.assert_allclose(made["image"].numpy(), by_hand(one["image"]), rtol=1e-5, atol=1e-6)
        assert torch.equal(made["target"], one["target"])
        assert made["target"].dtype == torch.int64
        assert made["epoch"] == 0


def test_the_input_batch_is_not_changed():
    one = batch()
    before = one["image"].clone()
    transform(erasing={"p": 1.0}, mixup=1.0)(one)
    assert one["image"].dtype == torch.uint8
    assert torch.equal(one["image"], before)
    assert one["target"].tolist() == batch()["target"].tolist()


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing_changes_rectangles_only(mode):
    erased = transform(erasing={"p": 1.0, "mode": mode})(batch())["image"]
    plain = transform()(batch())["image"]
    for one, other in zip(erased, plain, strict=True):
        changed = (one != other).any(0)
        rows, columns = torch.where(changed.any(1))[0], torch.where(changed.any(0))[0]
        assert 2 <= changed.sum() < 16 * 16 / 2
        inside = one[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert changed.sum() == len(rows) * len(columns)
        spread = inside.flatten(1).std(1)
        if mode == "const":
            assert (inside == 0).all()
        elif mode == "rand":
            assert (spread == 0).all()
        else:
            assert (spread > 0).all()


def test_erasing_probability_and_count():
    plain = transform()(batch(size=400))["image"]
    some = transform(erasing={"p": 0.3})(batch(size=400))["image"]
    share = (some != plain).flatten(1).any(1).float().mean().item()
    assert 0.2 < share < 0.4
    many = transform(erasing={"p": 1.0, "count": 3, "mode": "const"})(batch(size=400))["image"]
    assert (many != plain).flatten(1).any(1).all()


def test_mixup_is_a_mixture_with_the_flipped_batch():
    one = transform(mixup=0.8, label_smoothing=0.1)(batch(epoch=3))
    plain = transform()(batch(epoch=3))["image"]
    smoothed = torch.full((8, 4), 0.1 / 4).scatter_(1, batch()["target"][:, None], 0.9 + 0.1 / 4)
    difference, gap = (one["image"] - plain.flip(0)).flatten(), (plain - plain.flip(0)).flatten()
    lam = (difference @ gap / (gap @ gap)).item()
    assert 0.01 < lam < 0.99
    torch.testing.assert_close(one["image"], lam * plain + (1 - lam) * plain.flip(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one["target"], lam * smoothed + (1 - lam) * smoothed.flip(0), atol=1e-5, rtol=1e-5)


def test_cutmix_pastes_a_rectangle_and_weighs_targets_by_area():
    pasted_any = False
    for epoch in range(6):
        one = transform(cutmix=1.0)(batch(epoch))
        plain = transform()(batch(epoch))["image"]
        taken = (one["image"] != plain).any(1)
        mask = taken[:, None].expand_as(plain)
        assert torch.equal(one["image"][mask], plain.flip(0)[mask])
        area = (taken.any(0)).float().mean().item()
        hot = torch.nn.functional.one_hot(batch()["target"], 4).float()
        torch.testing.assert_close(one["target"], (1 - area) * hot + area * hot.flip(0), atol=1e-6, rtol=0)
        pasted_any |= 0 < area < 1
    assert pasted_any


OPTIONS = {"erasing": {"p": 0.5}, "mixup": 0.8, "cutmix": 1.0}


def test_draws_depend_on_seed_epoch_first_index_and_repeat_only():
    first = transform(**OPTIONS)(batch(2, 5))
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    fresh = transform(**OPTIONS)
    fresh(batch(9, 9))
    again = fresh(batch(2, 5))
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["target"], again["target"])
    for other in (
        transform(seed=1, **OPTIONS)(batch(2, 5)),
        transform(**OPTIONS)(batch(3, 5)),
        transform(**OPTIONS)(batch(2, 6)),
        transform(**OPTIONS)(batch(2, 5, repeat=1)),
    ):
        assert not torch.equal(first["image"], other["image"])


def test_draws_are_pinned():
    """Other draws for the first showing of an image would change resumed runs."""
    one = {**batch(epoch=3, size=2), "index": torch.tensor([9, 4]), "target": torch.tensor([0, 1])}
    mixed = transform(seed=5, mixup=0.4)(one)["target"]
    torch.testing.assert_close(mixed[:, :2], torch.tensor([[0.44603637, 0.5539636], [0.5539636, 0.44603637]]))


def test_leaves_the_global_generators_alone():
    before = global_states()
    transform(**OPTIONS)(batch())
    assert global_states() == before


def test_mixing_stops_at_its_epoch_and_keeps_the_form_of_the_targets():
    mixing = transform(mixup=0.8, label_smoothing=0.2, mixup_off_epoch=4)
    hard = torch.full((8, 4), 0.05).scatter_(1, batch()["target"][:, None], 0.85)
    for epoch in (3, 4, 5, 3):
        one = mixing(batch(epoch))
        unmixed = torch.equal(one["image"], transform()(batch(epoch))["image"])
        assert unmixed == (epoch >= 4)
        assert one["target"].shape == (8, 4)
        assert torch.allclose(one["target"], hard) == (epoch >= 4)


def test_mix_prob_zero_never_mixes():
    one = transform(mixup=0.8, mixup_prob=0.0)(batch())
    assert torch.equal(one["image"], transform()(batch())["image"])


def test_a_policy_is_applied_before_normalization():
    one = batch(size=30)
    policy = Policy.of(AugmentConfig(rand_augment="rand-m9-p1-n1"), PREPROCESSING)
    table = policy.draw(uniforms(POLICY, 0, 0, range(30), [0] * 30, policy.count))
    made = transform()({**one, "policy": table})
    assert "policy" not in made
    pixels = one["image"].permute(0, 2, 3, 1).numpy()
    applied = [np.asarray(policy.apply(Image.fromarray(image), table, row)) for row, image in enumerate(pixels)]
    assert (np.stack(applied) != pixels).any((1, 2, 3)).sum() > 15
    expected = by_hand(torch.from_numpy(np.stack(applied)).permute(0, 3, 1, 2))
    level = (1 / 255 / np.array(PREPROCESSING.std)).reshape(1, 3, 1, 1)
    assert (abs(made["image"].numpy() - expected) < 1.001 * level).all()
    assert torch.equal(one["image"], batch(size=30)["image"])


@pytest.mark.gpu
def test_on_cuda_without_waiting_for_the_device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    one = batch()
    made = transform(device="cuda", channels_last=True, **OPTIONS)
    policy = Policy.of(AugmentConfig(rand_augment="rand-m7-mstd0.5-inc1-p1-n8"), PREPROCESSING)
    table = policy.draw(uniforms(POLICY, 0, 0, range(8), [0] * 8, policy.count))
    state = torch.cuda.get_rng_state()
    moved = {**one, "image": one["image"].cuda(), "target": one["target"].cuda(), "policy": table}
    made(moved)
    torch.cuda.set_sync_debug_mode("error")
    try:
        first, second = made(moved), made(moved)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["target"], second["target"])
    assert torch.equal(torch.cuda.get_rng_state(), state)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("keys", [{"mixup": 0.4}, {"cutmix": 1.0, "cutmix_minmax": (0.2, 0.8)}])
def test_modes_of_mixing_are_timms(mode, keys):
    """The same draws, the same pixels and targets, whatever else was drawn before."""
    augment = AugmentConfig(mixup_mode=mode, **keys)
    images = batch(epoch=2, size=6)
    np.random.seed(5)
    got = TrainBatchTransform(PREPROCESSING, augment, device="cpu", seed=1, num_classes=4)(dict(images))
    settings = {"mode": mode, "label_smoothing": 0, "num_classes": 4}
    theirs = Mixup(keys.get("mixup", 0), keys.get("cutmix", 0), keys.get("cutmix_minmax"), **settings)
    plain = EvalBatchTransform(PREPROCESSING, device="cpu")(dict(images))["image"]
    with keyed_generators(*entry_key(BATCH, 1, 2, 5, 0)):
        mixed, targets = theirs(plain.clone(), images["target"])
    assert torch.equal(got["image"], mixed)
    assert torch.equal(got["target"], targets)
    assert not torch.equal(got["image"], plain)
