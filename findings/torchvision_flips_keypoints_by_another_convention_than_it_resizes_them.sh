#!/usr/bin/env bash
# Finding (2026-11): torchvision's flips take a keypoint for the number of a pixel, its rotations, resizes and crops for a
# point on the plane: whichever of the two the labels are, half of the transforms put them up to one pixel beside the object.
#
# Expected: the point (x, y) means one thing. Either x = 0 is the left edge of the image, as for bounding boxes, then a flip
#   is W - x and a resize s * x; or it is the center of the first pixel, then they are W - 1 - x and s * (x + 0.5) - 0.5.
#   Flipping both ways and rotating by 180 degrees give the same picture, so they give the same points.
# Real: KeyPoints are flipped to W - 1 - x and resized to s * x, and rotated and scaled about W / 2. Measured below on a
#   bright block: labels on the plane are right everywhere but in flips, off by a whole pixel; labels that number
#   pixels are right in flips alone. Boxes around the same block are right in all of them. The documentation of KeyPoints
#   names no convention.
# Why it matters: a random flip shifts half of the training labels to one side, and a Resize behind it multiplies that: 4
#   pixels in a network of four times the resolution. The network learns the blur. Flipping at test time and averaging
#   has the same shift. Nothing is visible by eye, and the two ways to undo a flip (flip back, rotate) disagree.
# Way out, checked below: keep labels on the plane (add 0.5 to pixel numbers once) and add 1 after a flip.
#
# Versions: torch 2.14.1, torchvision 0.29.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   torch 2.14.1 torchvision 0.29.1
#     error in x, y of        pixel numbers   points on the plane  boxes
#     horizontal flip         [0.0, 0.0]      [-1.0, 0.0]          [0.0, 0.0]
#     vertical flip           [0.0, 0.0]      [0.0, -1.0]          [0.0, 0.0]
#     both flips              [0.0, 0.0]      [-1.0, -1.0]         [0.0, 0.0]
#     rotate by 180           [1.0, 1.0]      [0.0, 0.0]           [0.0, 0.0]
#     rotate by 90, expand    [0.0, 1.0]      [0.0, 0.0]           [0.0, 0.0]
#     resize to twice         [-0.5, -0.5]    [0.0, 0.0]           [0.0, 0.0]
#     resize to half          [0.25, 0.25]    [0.0, 0.0]           [0.0, 0.0]
#     affine, scale 2         [-0.5, -0.5]    [0.0, 0.0]           [0.0, 0.0]
#     crop, resize to 3x      [-1.0, -1.0]    [0.0, 0.0]           [0.0, 0.0]
#     flip, resize to 4x      [-1.5, -1.5]    [-4.0, 0.0]          [0.0, 0.0]
#     (54, 44): both flips [73.0, 51.0], rotated by 180 [74.0, 52.0]; the two pictures are equal: True
#     way out, flip + 1, resized to 4x: [296.0, 176.0], the block is at [296.0, 176.0]
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import sys

import torch
import torchvision
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes, Image, KeyPoints

HEIGHT, WIDTH = 96, 128


def bright_block(left, top):
    picture = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.float64)
    picture[:, top : top + 8, left : left + 8] = 1
    return picture


def middle(picture):
    """Center of brightness, counted in pixel numbers: (0, 0) for a picture whose first pixel alone is bright."""
    rows = torch.arange(picture.shape[-2], dtype=torch.float64)
    columns = torch.arange(picture.shape[-1], dtype=torch.float64)
    return torch.stack([(picture.sum((0, 1)) * columns).sum(), (picture.sum((0, 2)) * rows).sum()]) / picture.sum()


TRANSFORMS = {
    "horizontal flip": F.horizontal_flip,
    "vertical flip": F.vertical_flip,
    "both flips": lambda x: F.vertical_flip(F.horizontal_flip(x)),
    "rotate by 180": lambda x: F.rotate(x, 180),
    "rotate by 90, expand": lambda x: F.rotate(x, 90, expand=True),
    "resize to twice": lambda x: F.resize(x, [2 * HEIGHT, 2 * WIDTH]),
    "resize to half": lambda x: F.resize(x, [HEIGHT // 2, WIDTH // 2]),
    "affine, scale 2": lambda x: F.affine(x, 0.0, [0, 0], 2.0, [0.0, 0.0]),
    "crop, resize to 3x": lambda x: F.resized_crop(x, 16, 32, 64, 64, [192, 192]),
    "flip, resize to 4x": lambda x: F.resize(F.horizontal_flip(x), [4 * HEIGHT, 4 * WIDTH]),
}
# Errors (x, y) of labels that number pixels and of labels on the plane.
EXPECTED = {
    "horizontal flip": ([0, 0], [-1, 0]),
    "vertical flip": ([0, 0], [0, -1]),
    "both flips": ([0, 0], [-1, -1]),
    "rotate by 180": ([1, 1], [0, 0]),
    "rotate by 90, expand": ([0, 1], [0, 0]),
    "resize to twice": ([-0.5, -0.5], [0, 0]),
    "resize to half": ([0.25, 0.25], [0, 0]),
    "affine, scale 2": ([-0.5, -0.5], [0, 0]),
    "crop, resize to 3x": ([-1, -1], [0, 0]),
    "flip, resize to 4x": ([-1.5, -1.5], [-4, 0]),
}


def errors(transform, left, top):
    """Where the labels land, less where the block lands in the transformed picture."""
    picture = bright_block(left, top)
    center = middle(picture)
    truth = middle(transform(Image(picture)).as_subclass(torch.Tensor))
    found = []
    for offset in (0.0, 0.5):  # the number of a pixel is its center; or its left and upper edge, as for boxes
        point = KeyPoints((center + offset)[None], canvas_size=(HEIGHT, WIDTH))
        found.append(transform(point).as_subclass(torch.Tensor)[0] - offset - truth)
    corners = torch.tensor([[left, top, left + 8, top + 8]], dtype=torch.float64)
    box = transform(BoundingBoxes(corners, format="XYXY", canvas_size=(HEIGHT, WIDTH))).as_subclass(torch.Tensor)[0]
    found.append((box[:2] + box[2:]) / 2 - 0.5 - truth)
    return [[round(value, 3) + 0.0 for value in error.tolist()] for error in found]


def main():
    print("torch", torch.__version__.split("+")[0], "torchvision", torchvision.__version__.split("+")[0])
    changed = []
    print("  error in x, y of        pixel numbers   points on the plane  boxes")
    for name, transform in TRANSFORMS.items():
        numbers, plane, box = errors(transform, 50, 40)
        print(f"  {name:22s}  {numbers!s:14s}  {plane!s:19s}  {box}")
        for left, top in ((50, 40), (61, 30), (44, 59)):
            if errors(transform, left, top) != [*EXPECTED[name], [0, 0]]:
                changed.append(f"{name} {left} {top}: {errors(transform, left, top)}")

    picture = bright_block(50, 40)
    flipped, turned = TRANSFORMS["both flips"](Image(picture)), F.rotate(Image(picture), 180)
    point = KeyPoints(torch.tensor([[54.0, 44.0]]), canvas_size=(HEIGHT, WIDTH))
    ends = [TRANSFORMS["both flips"](point).tolist()[0], F.rotate(point, 180).tolist()[0]]
    same = torch.equal(flipped, turned)
    print(f"  (54, 44): both flips {ends[0]}, rotated by 180 {ends[1]}; the two pictures are equal: {same}")
    if not same or ends != [[73, 51], [74, 52]]:
        changed.append(f"ends {ends}")

    truth = middle(TRANSFORMS["flip, resize to 4x"](Image(picture)).as_subclass(torch.Tensor)) + 0.5
    right = KeyPoints(F.horizontal_flip(point) + torch.tensor([1.0, 0.0]), canvas_size=(HEIGHT, WIDTH))
    right = F.resize(right, [4 * HEIGHT, 4 * WIDTH]).as_subclass(torch.Tensor)[0]
    print(f"  way out, flip + 1, resized to 4x: {right.tolist()}, the block is at {truth.tolist()}")
    if (right - truth).abs().max() > 1e-4:
        changed.append(f"way out {right} {truth}")
    if changed:
        sys.exit("CHANGED: " + "; ".join(changed))
    print("OK: behavior is as described")


if __name__ == "__main__":
    main()
PY
"$work/venv/bin/python" "$work/check.py"
