"""Policies: what is drawn, against timm's and torchvision's own classes, and how it is applied through Pillow."""

import pickle
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageOps
from timm.data import auto_augment as timm_ops
from torchvision import transforms as tv
from torchvision.transforms import autoaugment as tv_auto
from torchvision.transforms import functional as tv_functional

from ddfnet.data.augment import AugmentConfig
from ddfnet.data.policy import Policy
from ddfnet.data.policy.table import BICUBIC, BILINEAR, CODE, INTERPOLATION, NEAREST, VALUE, Op
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.rng import POLICY, key_seeds, keyed_generators, uniforms

SIZE, DRAWS = 64, 20000
PREPROCESSING = Preprocessing(size=SIZE)
AFFINE = (Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y)
RECIPES = [
    "rand",
    "rand-m9-n3-mstd0.5",
    "rand-m7-mstd0.5-inc1",
    "rand-m15-p0.3-mmax20-mstd4-inc1",
    "rand-m8-mstd101-p1",
    "rand-n3-mstd1-tweights",
    "rand-m8-inc1-t3a",
    "rand-m9-mstd2-n4-t3aw",
    "original",
    "originalr-mstd0.5",
    "v0-mstd0.5",
    "v0r-mstd1",
    "3a-mstd2",
]
OP_OF = {
    timm_ops.auto_contrast: Op.AUTOCONTRAST,
    timm_ops.equalize: Op.EQUALIZE,
    timm_ops.invert: Op.INVERT,
    timm_ops.rotate: Op.ROTATE,
    timm_ops.posterize: Op.POSTERIZE,
    timm_ops.solarize: Op.SOLARIZE,
    timm_ops.solarize_add: Op.SOLARIZE_ADD,
    timm_ops.color: Op.COLOR,
    timm_ops.desaturate: Op.COLOR,
    timm_ops.contrast: Op.CONTRAST,
    timm_ops.brightness: Op.BRIGHTNESS,
    timm_ops.sharpness: Op.SHARPNESS,
    timm_ops.shear_x: Op.SHEAR_X,
    timm_ops.shear_y: Op.SHEAR_Y,
    timm_ops.translate_x_rel: Op.TRANSLATE_X,
    timm_ops.translate_y_rel: Op.TRANSLATE_Y,
    timm_ops.gaussian_blur: Op.GAUSSIAN_BLUR,
    timm_ops.gaussian_blur_rand: Op.GAUSSIAN_BLUR,
}


def make_image(size=SIZE, key=0):
    pixels = np.random.default_rng(key).integers(0, 256, (size // 8, size // 8, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


def policy_of(recipe=None, **options):
    return Policy.of(AugmentConfig(rand_augment=recipe, **{"color_jitter": 0, **options}), PREPROCESSING)


def drawn(policy, draws=DRAWS):
    return policy.draw(uniforms(POLICY, 3, 1, range(draws), [0] * draws, policy.count))


class Blurred:
    """Stands for an image: takes the radius that timm draws inside its operation."""

    def filter(self, kernel):
        return kernel.radius


def recording(ops):
    """Makes timm's operations note what they would do, and returns where."""
    log = []

    def noting(op):
        function = op.aug_fn

        def note(image, *args, resample, **_):
            value = args[0] if args else 0.0
            if function is timm_ops.gaussian_blur_rand:
                value = function(Blurred(), value)
            elif function is timm_ops.desaturate:
                value = min(1.0, max(0.0, 1.0 - value))
            elif function is timm_ops.posterize:
                value = max(0, value)
            elif function in (timm_ops.translate_x_rel, timm_ops.translate_y_rel):
                value *= SIZE
            code = OP_OF[function]
            mode = random.choice(resample) if isinstance(resample, tuple) else resample
            log.append((code, value, int(mode) if code in AFFINE else 0))
            return image

        return note

    for op in ops:
        op.aug_fn = noting(op)
    return log


def timm_draws(recipe, draws=DRAWS):
    """For each draw of timm's own transform the operations that acted: [(code, value, interpolation), ...]."""
    made = timm_ops.rand_augment_transform if recipe.startswith("rand") else timm_ops.auto_augment_transform
    transform = made(recipe, {})
    ops = transform.ops if recipe.startswith("rand") else [op for part in transform.policy for op in part]
    log = recording(ops)
    result = []
    with keyed_generators(1, 2, 3):
        for _ in range(draws):
            transform(None)
            result.append(log.copy())
            log.clear()
    return result


def acting(table):
    """The same of a table."""
    return [[(Op(int(code)), value, int(mode)) for code, value, mode in row if code] for row in table.tolist()]


def assert_close_frequencies(ours, theirs):
    """Two samples of categories, of equal size: no frequency further apart than chance makes it once in 1e6."""
    assert len(ours) == len(theirs) > 0
    ours, theirs = Counter(ours), Counter(theirs)
    for category in {*ours, *theirs}:
        a, b = ours[category], theirs[category]
        assert abs(a - b) <= 5 * np.sqrt(a + b) + 1, (category, a, b)


def assert_close_values(ours, theirs, what):
    """Kolmogorov and Smirnov's test of two samples."""
    ours, theirs = np.sort(ours), np.sort(theirs)
    # Tolerance: float32 against float64 of the same value.
    at = np.concatenate([ours, theirs]) + 1e-4
    distance = abs(np.searchsorted(ours, at) / len(ours) - np.searchsorted(theirs, at) / len(theirs)).max()
    assert distance <= 2.5 * np.sqrt(1 / len(ours) + 1 / len(theirs)), what


# --- draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_draws_are_distributed_as_timms(recipe):
    ours, theirs = acting(drawn(policy_of(recipe, color_jitter=0))), timm_draws(recipe)
    # The sequence of operations that act on an image: their number, order, and which come together.
    assert_close_frequencies([tuple(op[0] for op in ops) for ops in ours], [tuple(op[0] for op in o) for o in theirs])
    flat_ours, flat_theirs = [op for ops in ours for op in ops], [op for ops in theirs for op in ops]
    for code in {op[0] for op in flat_ours}:
        ours_of, theirs_of = ([op for op in ops if op[0] == code] for ops in (flat_ours, flat_theirs))
        if len(theirs_of) > 100:
            assert_close_values([op[1] for op in ours_of], [op[1] for op in theirs_of], code.name)
    modes = ([op[2] for op in ops if op[0] in AFFINE] for ops in (flat_ours, flat_theirs))
    ours_modes, theirs_modes = map(np.array, modes)
    if len(theirs_modes):
        assert set(ours_modes) == set(theirs_modes) == {BILINEAR, BICUBIC}
        assert abs((ours_modes == BICUBIC).mean() - (theirs_modes == BICUBIC).mean()) < 0.05


def test_a_wrong_distribution_is_noticed():
    """The two measures see a probability of 0.53 for 0.5, and a deviation of 1 level for half a level."""
    ours, theirs = acting(drawn(policy_of("rand-m9-mstd0.5-p0.53"))), timm_draws("rand-m9-mstd0.5")
    with pytest.raises(AssertionError):
        assert_close_frequencies([len(ops) for ops in ours], [len(ops) for ops in theirs])
    ours = [op[1] for ops in acting(drawn(policy_of("rand-m9-mstd0.5"))) for op in ops if op[0] == Op.COLOR]
    theirs = [op[1] for ops in timm_draws("rand-m9-mstd1") for op in ops if op[0] == Op.COLOR]
    with pytest.raises(AssertionError):
        assert_close_values(ours, theirs, "color")


@pytest.mark.parametrize(("name", "code"), [("nearest", NEAREST), ("bilinear", BILINEAR), ("bicubic", BICUBIC)])
def test_a_chosen_interpolation_holds_for_every_affine_operation(name, code):
    for recipe in ("rand-m7-inc1", "v0"):
        table = drawn(policy_of(recipe, interpolation=name), 2000)
        assert set(table[np.isin(table[..., CODE], AFFINE)][:, INTERPOLATION]) == {code}


def test_weighted_operations_come_at_most_once():
    table = drawn(policy_of("rand-n15-p1-tweights"), 200)
    assert all(len(set(row)) == 15 for row in table[..., CODE].tolist())
    with pytest.raises(ValueError, match=r"rand-n16-tweights cannot be drawn.*16 of 15 operations"):
        AugmentConfig(rand_augment="rand-n16-tweights")


def test_color_jitter_is_torchvisions():
    jitter = tv.ColorJitter(0.4, 0.4, 0.4)
    with keyed_generators(5):
        params = [jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, None) for _ in range(6000)]
    theirs_order = [tuple(int(i) for i in order if i < 3) for order, *_ in params]
    table = drawn(policy_of(color_jitter=0.4), 6000)
    number = {Op.BRIGHTNESS: 0, Op.CONTRAST: 1, Op.COLOR: 2}
    assert_close_frequencies([tuple(number[op[0]] for op in ops) for ops in acting(table)], theirs_order)
    for op, i in number.items():
        assert_close_values(table[..., VALUE][table[..., CODE] == op], [one[1 + i] for one in params], op.name)


def test_color_jitter_cannot_turn_negative():
    table = drawn(policy_of(color_jitter=1.5), 2000)
    assert 0 <= table[..., VALUE].min() < 0.01
    assert 2.49 < table[..., VALUE].max() <= 2.5


TRIVIAL = {
    "Identity": Op.IDENTITY,
    "ShearX": Op.SHEAR_X,
    "ShearY": Op.SHEAR_Y,
    "TranslateX": Op.TRANSLATE_X,
    "TranslateY": Op.TRANSLATE_Y,
    "Rotate": Op.ROTATE,
    "Brightness": Op.BRIGHTNESS,
    "Color": Op.COLOR,
    "Contrast": Op.CONTRAST,
    "Sharpness": Op.SHARPNESS,
    "Posterize": Op.POSTERIZE,
    "Solarize": Op.SOLARIZE,
    "AutoContrast": Op.AUTOCONTRAST,
    "Equalize": Op.EQUALIZE,
}


def trivial_value(name, magnitude):
    """Value of our operation for torchvision's magnitude."""
    if name.startswith("Translate"):
        return -int(magnitude)
    return magnitude + 1 if name in ("Brightness", "Color", "Contrast", "Sharpness") else magnitude


def test_trivial_augment_draws_as_torchvision(monkeypatch):
    theirs = []

    def note(image, name, magnitude, **_):
        theirs.append((TRIVIAL[name], np.float32(trivial_value(name, magnitude)).round(4)))
        return image

    monkeypatch.setattr(tv_auto, "_apply_op", note)
    transform, image = tv.TrivialAugmentWide(), Image.new("RGB", (8, 8))
    with keyed_generators(9):
        for _ in range(DRAWS):
            transform(image)
    table = drawn(policy_of(trivial_augment=True))
    assert set(table[np.isin(table[..., CODE], AFFINE)][:, INTERPOLATION]) == {BILINEAR}
    ours = [(Op(int(code)), np.float32(value).round(4)) for code, value, _ in table[:, 0]]
    assert {op for op, _ in ours} == set(TRIVIAL.values())
    assert_close_frequencies(ours, theirs)


def test_policies_join_the_jitter_only_in_3_augment():
    for recipe, layers in (("rand-m7", 2), ("rand-n5", 5), ("v0", 2), ("3a", 4), ("rand-t3a", 5), ("augmix", 1)):
        assert drawn(policy_of(recipe, color_jitter=0.4), 4).shape == (4, layers, 3)
    assert drawn(policy_of(trivial_augment=True, color_jitter=0.4), 4).shape == (4, 1, 3)
    assert drawn(policy_of(color_jitter=0.4), 4).shape == (4, 3, 3)


def test_no_policy():
    assert policy_of() is None
    assert policy_of("rand-n0") is None


@pytest.mark.parametrize("options", [{"recipe": r} for r in [*RECIPES, "augmix"]] + [{"trivial_augment": True}])
def test_a_row_depends_on_its_own_draws_alone(options):
    policy = policy_of(**options, color_jitter=0.4)
    u = uniforms(POLICY, 0, 0, range(50), [0] * 50, policy.count + 5)
    whole = policy.draw(u)
    assert whole.dtype == np.float32
    assert np.array_equal(policy.draw(u[17:30, : policy.count]), whole[17:30])


def test_extreme_draws_stay_in_range():
    for recipe in [*RECIPES, "augmix"]:
        policy = policy_of(recipe, color_jitter=0.4)
        for value in (0.0, 1 - 2.0**-53):
            assert np.isfinite(policy.draw(np.full((2, policy.count), value))).all()
    policy = policy_of(trivial_augment=True)
    assert np.isfinite(policy.draw(np.full((2, policy.count), 1 - 2.0**-53))).all()


# --- through Pillow ---------------------------------------------------------------------------------------------------


def applied(policy, op, value, mode=0, image=None):
    table = np.array([[[op, value, mode]]], np.float32)
    return np.asarray(policy.apply(image or make_image(), table, 0))


def test_operations_are_timms():
    policy, image = policy_of("rand"), make_image()
    fill = (124, 116, 104)
    for op, function, value in (
        (Op.AUTOCONTRAST, timm_ops.auto_contrast, ()),
        (Op.EQUALIZE, timm_ops.equalize, ()),
        (Op.INVERT, timm_ops.invert, ()),
        (Op.POSTERIZE, timm_ops.posterize, (3,)),
        (Op.SOLARIZE, timm_ops.solarize, (100,)),
        (Op.SOLARIZE_ADD, timm_ops.solarize_add, (40,)),
        (Op.BRIGHTNESS, timm_ops.brightness, (1.5,)),
        (Op.CONTRAST, timm_ops.contrast, (0.25,)),
        (Op.COLOR, timm_ops.color, (1.75,)),
        (Op.SHARPNESS, timm_ops.sharpness, (0.25,)),
        (Op.GAUSSIAN_BLUR, timm_ops.gaussian_blur, (1.25,)),
    ):
        assert np.array_equal(applied(policy, op, *(value or (0,))), np.asarray(function(image, *value))), op
    for op, function, value in (
        (Op.ROTATE, timm_ops.rotate, 12.5),
        (Op.SHEAR_X, timm_ops.shear_x, 0.25),
        (Op.SHEAR_Y, timm_ops.shear_y, -0.25),
        (Op.TRANSLATE_X, lambda im, v, **k: timm_ops.translate_x_rel(im, v / SIZE, **k), 8.5),
        (Op.TRANSLATE_Y, lambda im, v, **k: timm_ops.translate_y_rel(im, v / SIZE, **k), -8.5),
    ):
        for mode in (NEAREST, BILINEAR, BICUBIC):
            theirs = function(image, value, resample=Image.Resampling(mode), fillcolor=fill)
            assert np.array_equal(applied(policy, op, value, mode), np.asarray(theirs)), op


@pytest.mark.parametrize("name", TRIVIAL)
def test_operations_of_trivial_augment_are_torchvisions(name):
    policy, image = policy_of(trivial_augment=True), make_image()
    magnitudes, signed = tv.TrivialAugmentWide()._augmentation_space(31)[name]
    bilinear = tv.InterpolationMode.BILINEAR
    for magnitude in magnitudes.view(-1).tolist():
        for sign in (1, -1) if signed else (1,):
            theirs = tv_auto._apply_op(image, name, sign * magnitude, interpolation=bilinear, fill=policy.fill)
            ours = applied(policy, TRIVIAL[name], trivial_value(name, sign * magnitude), BILINEAR)
            difference = abs(ours.astype(int) - np.asarray(theirs).astype(int))
            # The table's float32 moves a pixel in a thousand by a level.
            assert difference.max() <= 1
            assert (difference > 0).mean() < 2e-3


def test_color_jitter_applies_torchvisions_operations_in_its_order():
    policy, image = policy_of(color_jitter=0.4), make_image()
    adjust = {
        Op.BRIGHTNESS: tv_functional.adjust_brightness,
        Op.CONTRAST: tv_functional.adjust_contrast,
        Op.COLOR: tv_functional.adjust_saturation,
    }
    table = drawn(policy, 8)
    for row in range(8):
        theirs = image
        for code, value, _ in table[row].tolist():
            theirs = adjust[Op(int(code))](theirs, value)
        assert np.array_equal(np.asarray(policy.apply(image, table, row)), np.asarray(theirs))


@pytest.mark.parametrize("recipe", ["augmix-m5-w4-d2", "augmix-m3-a0.5-b1"])
def test_augmix_is_timms_from_a_seed_of_the_sample(recipe):
    policy, image = policy_of(recipe, interpolation="bilinear"), make_image()
    table = drawn(policy, 5)
    before = random.getstate()
    made = [np.asarray(policy.apply(image, table, row)) for row in range(5)]
    assert random.getstate() == before
    assert len({array.tobytes() for array in made}) == 5
    params = {"img_mean": policy.fill, "translate_pct": 0.3, "interpolation": Image.Resampling.BILINEAR}
    theirs = timm_ops.augment_and_mix_transform(recipe, params)
    for row in range(5):
        _, *seed = (int(number) for number in table[row, 0])
        assert len(key_seeds(*seed)) == 3
        with keyed_generators(*seed):
            assert np.array_equal(made[row], np.asarray(theirs(image)))


def test_no_bits_make_black_where_pillow_refuses_them(monkeypatch):
    """As Pillow 13 does; timm's recipes ask for 0 bits at level 10."""
    plain = ImageOps.posterize

    def strict(image, bits):
        if not 1 <= bits <= 8:
            raise ValueError("bits must be between 1 and 8")
        return plain(image, bits)

    monkeypatch.setattr(ImageOps, "posterize", strict)
    policy = policy_of("rand-m10-inc1")
    assert not applied(policy, Op.POSTERIZE, 0).any()
    assert applied(policy, Op.POSTERIZE, 1).any()
    for recipe in ("rand-m10-inc1-p1-n4", "v0", "augmix-m10-mstd0"):
        policy = policy_of(recipe)
        table = drawn(policy, 100)
        for row in range(100):
            policy.apply(make_image(), table, row)


@pytest.mark.parametrize("options", [{"recipe": r} for r in [*RECIPES, "augmix"]] + [{"trivial_augment": True}])
def test_policies_pickle(options):
    policy, image = policy_of(**options, color_jitter=0.4), make_image()
    again = pickle.loads(pickle.dumps(policy))
    table = drawn(policy, 3)
    assert np.array_equal(drawn(again, 3), table)
    assert np.array_equal(np.asarray(again.apply(image, table, 1)), np.asarray(policy.apply(image, table, 1)))


# --- where ------------------------------------------------------------------------------------------------------------


def test_where():
    assert AugmentConfig().on_device("cuda")
    assert not AugmentConfig().on_device("cpu")
    assert AugmentConfig(where="device").on_device("cpu")
    assert not AugmentConfig(where="cpu").on_device("cuda")
    assert not AugmentConfig(rand_augment="augmix").on_device("cuda")
    with pytest.raises(ValueError, match=r"where=device and .*rand_augment=augmix-m3.*where=cpu"):
        AugmentConfig(where="device", rand_augment="augmix-m3")
    with pytest.raises(ValueError, match="'auto', 'device' or 'cpu'"):
        AugmentConfig(where="gpu")


def test_where_without_a_policy_has_no_effect():
    assert "where" in dict(AugmentConfig(where="device", color_jitter=0).without_effect())
    assert "where" not in dict(AugmentConfig(where="device").without_effect())
    assert "color_jitter" in dict(AugmentConfig(rand_augment="rand").without_effect())
    assert "color_jitter" not in dict(AugmentConfig(rand_augment="rand-t3a").without_effect())
