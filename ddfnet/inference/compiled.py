"""Packages of AOTInductor, called with any image that holds the right values."""

import json
from pathlib import Path

import torch
from torch import Tensor

from ddfnet.utils.errors import UserError


class CompiledClassifier:
    """A package written by `scripts/export.py --format aoti`.

    The machine code in it reads the memory of its input as if it were contiguous, float32 and of the size it was
    compiled for, whatever the tensor says of itself: a permuted image gives logits of another image, without a word.
    Here such an image is copied first, and what cannot be meant is an error.

    Attributes:
        metadata: model, classes, preprocessing, input, output, producer; values that are not text are JSON.
        shape: of the input; None stands for any batch size.
        device: the type the package was compiled for, `cpu` or `cuda`.
    """

    def __init__(self, path: str | Path) -> None:
        if not Path(path).is_file():
            raise UserError(f"compiled package not found: {path}")
        try:
            self._package = torch._inductor.aoti_load_package(str(path))
            self.metadata: dict[str, str] = self._package.get_metadata()
        except RuntimeError as error:
            raise UserError(f"{path} cannot be loaded as a compiled package here: {error}") from None
        if "input_shape" not in self.metadata:
            raise UserError(f"{path} does not say which input it takes: write it with scripts/export.py --format aoti")
        self.shape: tuple[int | None, ...] = tuple(json.loads(self.metadata["input_shape"]))
        self.device = self.metadata["AOTI_DEVICE_KEY"]

    def __call__(self, image: Tensor) -> Tensor:
        """Logits float32 (B, classes) of normalized images float32 (B, 3, height, width), of any strides.

        Raises:
            TypeError: not a tensor, or not float32.
            ValueError: another shape, or a tensor on another kind of device.
        """
        if not isinstance(image, Tensor) or image.dtype != torch.float32:
            got = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"image: expected a tensor of torch.float32, got {got}")
        wrong = [size is not None and size != got for size, got in zip(self.shape, image.shape, strict=False)]
        if image.ndim != len(self.shape) or any(wrong) or len(image) == 0:
            expected = ", ".join("B" if size is None else str(size) for size in self.shape)
            raise ValueError(f"image: expected shape ({expected}), got {tuple(image.shape)}")
        if image.device.type != self.device:
            raise ValueError(f"image: the package was compiled for {self.device}, got a tensor on {image.device}")
        return self._package(image.contiguous())


def load_compiled(path: str | Path) -> CompiledClassifier:
    """Loads a package of `scripts/export.py --format aoti`. It is machine code: load only those you made.

    Raises:
        UserError: (a ValueError) no such package, or one that does not say which input it takes.
    """
    return CompiledClassifier(path)
