"""A policy's operations on one image, by timm's functions on Pillow images: the reference of the batched ones."""

from collections.abc import Callable

from PIL import Image
from timm.data import auto_augment as timm_ops

from ddfnet.data.policy.table import Op

_AFFINE: dict[Op, Callable[..., Image.Image]] = {
    Op.ROTATE: timm_ops.rotate,
    Op.SHEAR_X: timm_ops.shear_x,
    Op.SHEAR_Y: timm_ops.shear_y,
    Op.TRANSLATE_X: timm_ops.translate_x_abs,
    Op.TRANSLATE_Y: timm_ops.translate_y_abs,
}
_COLOR: dict[Op, Callable[[Image.Image, float], Image.Image]] = {
    Op.AUTOCONTRAST: lambda image, value: timm_ops.auto_contrast(image),
    Op.EQUALIZE: lambda image, value: timm_ops.equalize(image),
    Op.INVERT: lambda image, value: timm_ops.invert(image),
    Op.POSTERIZE: lambda image, value: posterize(image, int(value)),
    Op.SOLARIZE: timm_ops.solarize,
    Op.SOLARIZE_ADD: lambda image, value: timm_ops.solarize_add(image, int(value)),
    Op.BRIGHTNESS: timm_ops.brightness,
    Op.CONTRAST: timm_ops.contrast,
    Op.COLOR: timm_ops.color,
    Op.SHARPNESS: timm_ops.sharpness,
    Op.GAUSSIAN_BLUR: timm_ops.gaussian_blur,
}


def apply_op(image: Image.Image, op: Op, value: float, interpolation: int, fill: tuple[int, int, int]) -> Image.Image:
    """One operation on an RGB image; `fill` is the color of what an affine operation leaves empty."""
    if op in _AFFINE:
        return _AFFINE[op](image, value, resample=Image.Resampling(interpolation), fillcolor=fill)
    return image if op == Op.IDENTITY else _COLOR[op](image, value)


def posterize(image: Image.Image, bits_to_keep: int, **_: object) -> Image.Image:
    """timm's operation, black where no bits are kept: Pillow 13 refuses 0 bits, which timm's recipes ask for."""
    if bits_to_keep <= 0:
        return Image.new(image.mode, image.size)
    return timm_ops.posterize(image, bits_to_keep)
