#!/usr/bin/env bash
# Finding (2026-11): Pillow 13 resizes an image that shrinks mostly in height columns first; Pillow 12 always did
# rows first. Bicubic and Lanczos results of such images differ by up to 50 of 255 levels at edges.
#
# Expected: Image.resize with the same filter gives the same pixels in every version, as it did for years (the
#   two versions agree to the bit for most shapes), or at least for every shape or for none.
# Real: the two passes of the filter do not commute, as the rows or columns in between are rounded and cut to
#   0..255, so the overshoot of one pass is lost before the other. Pillow 12 makes the horizontal pass first.
#   Pillow 13 picks the order by cost: vertical first where h > H and about h - H > 2 (w - W), with w x h the
#   source and W x H the target. Landscape images and plain resizes that keep the shape are unchanged, and so
#   is a square target from 375x500; 333x500 to a square, and many tall random crops, are another picture.
#   Bilinear moves by one level, bicubic by up to 28, Lanczos by up to 52 on sharp texture.
# Why it matters: accuracies, feature caches, perceptual hashes and "pixel-identical to Pillow" tests of other
#   decoders move after an upgrade, for some images only; a parity test on one landscape image passes.
# Way out, checked below (the second column): two calls, rows then columns, give Pillow 12's pixels in both.
#
# Versions: Pillow 12.3.0 and 13.0.0, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen (part for 12.3.0 left out: "True , False" and 0 in each line):
#   pillow 13.0.0
#   source     target     filter    equal to rows first, columns first   against rows first: max, mean
#   (500, 375) (341, 256) bicubic   True , False                            0, 0.000
#   (375, 500) (256, 341) bicubic   True , False                            0, 0.000
#   (500, 333) (224, 224) bicubic   True , False                            0, 0.000
#   (333, 500) (224, 224) bilinear  False, True                             1, 0.156
#   (333, 500) (224, 224) bicubic   False, True                            17, 1.689
#   (333, 500) (224, 224) lanczos   False, True                            30, 3.036
#   (168, 312) (224, 224) bilinear  False, True                             1, 0.116
#   (168, 312) (224, 224) bicubic   False, True                            25, 3.052
#   (168, 312) (224, 224) lanczos   False, True                            49, 5.064
#   (240, 300) (224, 224) bilinear  False, True                             1, 0.111
#   (240, 300) (224, 224) bicubic   False, True                            28, 2.795
#   (240, 300) (224, 224) lanczos   False, True                            52, 4.593
#   (300, 240) (224, 224) bicubic   True , False                            0, 0.000
#   (375, 500) (224, 224) bicubic   True , False                            0, 0.000
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

cat > "$work/check.py" <<'PY'
import sys

import numpy as np
import PIL
from PIL import Image

NEW = int(PIL.__version__.split(".")[0]) >= 13
FILTERS = {name: Image.Resampling[name.upper()] for name in ("bilinear", "bicubic", "lanczos")}
print("pillow", PIL.__version__)


def texture(width, height):
    """Sharp edges at all angles, as in line art and foliage."""
    y, x = np.mgrid[0:height, 0:width]
    rings = ((x - width / 3) ** 2 + (y - height / 2) ** 2) // 90 % 2 * 255
    return Image.fromarray(np.stack([rings, (x + y) // 5 % 2 * 255, x * y // 97 % 2 * 255], 2).astype(np.uint8))


def resize(image, size, how):
    return np.asarray(image.resize(size, how)).astype(int)


failures = []
print("source     target     filter    equal to rows first, columns first   against rows first: max, mean")
for source, target, turned in (
    ((500, 375), (341, 256), False),
    ((375, 500), (256, 341), False),
    ((500, 333), (224, 224), False),
    ((333, 500), (224, 224), True),
    ((168, 312), (224, 224), True),
    ((240, 300), (224, 224), True),
    ((300, 240), (224, 224), False),
    ((375, 500), (224, 224), False),
):
    image = texture(*source)
    for name, how in FILTERS.items():
        both = resize(image, target, how)
        rows = resize(image.resize((target[0], source[1]), how), target, how)
        columns = resize(image.resize((source[0], target[1]), how), target, how)
        order = np.array_equal(both, rows), np.array_equal(both, columns)
        off = np.abs(both - rows)
        if name == "bicubic" or turned:
            text = f"{source!s:10s} {target!s:10s} {name:9s} {order[0]!s:5s}, {order[1]!s:5s}"
            print(f"{text} {off.max():28d}, {off.mean():.3f}")
        if order != ((False, True) if NEW and turned else (True, False)):
            failures.append(f"{source} to {target}, {name}: {order}")
if failures:
    sys.exit(f"CHANGED in Pillow {PIL.__version__}: " + "; ".join(failures))
PY

for version in 12.3.0 13.0.0; do
  python3 -m venv "$work/venv-$version"
  "$work/venv-$version/bin/python" -m pip install --quiet --disable-pip-version-check \
    "pillow==$version" numpy==2.4.6
  "$work/venv-$version/bin/python" "$work/check.py"
done
echo "OK: behavior is as described"
