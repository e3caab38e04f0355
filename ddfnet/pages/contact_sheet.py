"""Many small images in one, each with a line of text below it."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_TILE = 160  # pixels of the longest side of a tile; smaller images are enlarged by a whole factor
_GAP = 6
_FONT, _LINE, _CHARACTERS, _LINES = 22, 26, 14, 2  # of the text, to be read where a sheet is shown at half its size


def contact_sheet(images: Sequence[tuple[Tensor, str]], *, columns: int = 4) -> np.ndarray:
    """Images (3, H, W) with values in [0, 1] and their captions -> pixels (height, width, 3) uint8."""
    tiles = [(_fitted(image), _wrapped(caption)) for image, caption in images]
    below = _LINE * max(len(lines) for _, lines in tiles)
    rows = math.ceil(len(tiles) / columns)
    columns = min(columns, len(tiles))
    sheet = Image.new("RGB", (columns * (_TILE + _GAP) + _GAP, rows * (_TILE + below + _GAP) + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for i, (tile, lines) in enumerate(tiles):
        row, column = divmod(i, columns)
        x, y = _GAP + column * (_TILE + _GAP), _GAP + row * (_TILE + below + _GAP)
        sheet.paste(tile, (x, y))
        for line, text in enumerate(lines):
            draw.text((x, y + tile.height + line * _LINE), text, "black", font)
    return np.asarray(sheet)


def _wrapped(caption: str) -> list[str]:
    """One or two lines; of a longer caption the beginning."""
    lines = textwrap.wrap(caption, _CHARACTERS) or [""]
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], lines[_LINES - 1][: _CHARACTERS - 1] + "…"]
    return lines


def _fitted(image: Tensor) -> Image.Image:
    image = image.detach().float().cpu().clamp(0, 1)[None]
    longest = max(image.shape[-2:])
    if longest <= _TILE:
        image = image.repeat_interleave(_TILE // longest, 2).repeat_interleave(_TILE // longest, 3)
    else:
        sizes = [max(1, round(side * _TILE / longest)) for side in image.shape[-2:]]
        image = F.interpolate(image, sizes, mode="bilinear", antialias=True)
    pixels = (image[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.numpy())
