#!/usr/bin/env bash
# Finding (2026-11): MosaicML Streaming, LitData and the JPEG XL plugin of Pillow store the file that an image was
# opened from, not the image: what thumbnail(), draft(), paste() or drawing changed is not there.
#
# Expected: im = Image.open("a.jpg"); im.thumbnail((256, 256)); then writing im stores 256 pixels, as Pillow's own
#   writers do.
# Real: all three look whether the object still is Pillow's JPEG class (thumbnail, draft, paste, putpixel,
#   ImageDraw and exif_transpose(in_place=True) work in place and leave it so) and then copy the bytes of
#   im.filename: MDSWriter with the encoding "jpeg", LitData's serializer for images, and save("x.jxl") with its
#   default lossless_jpeg. The stored picture has the original size and content, in a file that is valid
#   in all respects. The plugin warns of "JPEG reconstruction" in words about lossless storage, the others are silent.
#   Had the image come from memory (io.BytesIO), MDS and LitData would store the edit, but encoded again with Pillow's
#   quality of 75, even where nothing was edited.
# Why it matters: shrinking ImageNet to 256 or 512 pixels while writing shards is done exactly so, and thumbnail
#   is the documented way to keep the aspect ratio. The shards come out at full size, several times too large, and
#   decode as slowly as before. A blurred face, a blackened label or burned-in patient data that was painted over is
#   still readable in the data set that gets published, and a fix of orientation is lost.
# Ways out, checked below: a copy (im.convert("RGB"), which returns a plain Image even if the mode is RGB),
#   resize() instead of thumbnail(), or for JPEG XL lossless_jpeg=False.
#
# Versions: mosaicml-streaming 0.13.0, litdata 0.2.76, pillow-jxl-plugin 1.3.8, Pillow 12.3.0, torch 2.14.1,
# torchvision 0.29.1, numpy 2.1.3, Python 3.11. Date: 2026-11.
# Output that was seen:
#   mosaicml-streaming 0.13.0 litdata 0.2.76 pillow-jxl-plugin 1.3.8 pillow 12.3.0
#   edit                         in memory      Pillow         MDS            LitData        JXL            JXL, lossless_jpeg=False
#   nothing                      640x512 white  640x512 white  640x512 white  640x512 white  640x512 white  640x512 white
#   thumbnail                    256x205 white  256x205 white  640x512 white  640x512 white  640x512 white  256x205 white
#   draft                        320x256 white  320x256 white  640x512 white  640x512 white  640x512 white  320x256 white
#   corner painted black         640x512 black  640x512 black  640x512 white  640x512 white  640x512 white  640x512 black
#   thumbnail of convert('RGB')  256x205 white  256x205 white  256x205 white  256x205 white  256x205 white  256x205 white
#   resize                       256x205 white  256x205 white  256x205 white  256x205 white  256x205 white  256x205 white
#   black in convert('RGB')      640x512 black  640x512 black  640x512 black  640x512 black  640x512 black  640x512 black
#   MDS, nothing edited, opened from file: changed by up to 0 gray levels
#   MDS, nothing edited, opened from memory: changed by up to 15 gray levels
#   LitData, nothing edited, opened from file: changed by up to 0 gray levels
#   LitData, nothing edited, opened from memory: changed by up to 15 gray levels
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 torchvision==0.29.1 mosaicml-streaming==0.13.0 litdata==0.2.76 pillow-jxl-plugin==1.3.8 \
  pillow==12.3.0 numpy==2.1.3
export HF_HUB_OFFLINE=1 TMPDIR="$work" HOME="$work" DISABLE_VERSION_CHECK=1

cat > "$work/check.py" <<'PY'
import importlib.metadata
import io
import os
import sys
import warnings

import litdata
import numpy as np
import pillow_jxl  # noqa: F401  registers the format
from litdata.streaming.cache import Cache
from PIL import Image, ImageDraw
from streaming import MDSWriter, StreamingDataset

warnings.simplefilter("ignore")
packages = ("mosaicml-streaming", "litdata", "pillow-jxl-plugin", "pillow")
print(*(f"{name} {importlib.metadata.version(name)}" for name in packages))
work = sys.argv[1]
source = f"{work}/a.jpg"
colors = np.random.default_rng(0).integers(0, 255, (16, 20, 3), dtype=np.uint8)
colors[:4, :4] = 250
Image.fromarray(colors).resize((640, 512)).save(source, quality=95)
original = np.asarray(Image.open(source))


def thumbnail(im):
    im.thumbnail((256, 256))
    return im


def draft(im):
    im.draft("RGB", (160, 160))
    return im


def blacken(im):
    ImageDraw.Draw(im).rectangle((0, 0, 99, 99), fill=(0, 0, 0))
    return im


edits = {
    "nothing": lambda im: im,
    "thumbnail": thumbnail,
    "draft": draft,
    "corner painted black": blacken,
    "thumbnail of convert('RGB')": lambda im: thumbnail(im.convert("RGB")),
    "resize": lambda im: im.resize((256, 205)),
    "black in convert('RGB')": lambda im: blacken(im.convert("RGB")),
}
counter = iter(range(10**6))


def by_mds(im):
    folder = f"{work}/mds{next(counter)}"
    with MDSWriter(out=folder, columns={"image": "jpeg"}) as writer:
        writer.write({"image": im})
    return np.asarray(StreamingDataset(local=folder, batch_size=1)[0]["image"])


def by_litdata(im):
    folder = f"{work}/lit{next(counter)}"
    os.makedirs(folder)
    cache = Cache(folder, chunk_size=1)
    cache[0] = {"image": im}
    cache.done()
    cache.merge()
    image = litdata.StreamingDataset(folder)[0]["image"]
    # Stored as a file it comes back as a tensor with channels first, stored as pixels as an image of Pillow.
    return np.asarray(image) if isinstance(image, Image.Image) else np.asarray(image).transpose(1, 2, 0)


def by_jxl(im, **options):
    path = f"{work}/{next(counter)}.jxl"
    im.save(path, **options)
    return np.asarray(Image.open(path))


def by_pillow(im):
    path = f"{work}/{next(counter)}.jpg"
    im.save(path, quality=95)
    return np.asarray(Image.open(path))


def words(pixels):
    corner = "black" if pixels[5:40, 5:40].mean() < 10 else "white"
    return f"{pixels.shape[1]}x{pixels.shape[0]} {corner}"


writers = {
    "Pillow": by_pillow,
    "MDS": by_mds,
    "LitData": by_litdata,
    "JXL": by_jxl,
    "JXL, lossless_jpeg=False": lambda im: by_jxl(im, lossless_jpeg=False),
}
print(f"{'edit':28s} {'in memory':14s}", *(f"{name:14s}" for name in writers))
seen = {}
for edit, function in edits.items():
    want = words(np.asarray(function(Image.open(source))))
    seen[edit] = want, {name: words(write(function(Image.open(source)))) for name, write in writers.items()}
    print(f"{edit:28s} {want:14s}", *(f"{value:14s}" for value in seen[edit][1].values()))

with open(source, "rb") as handle:
    data = handle.read()
off = {}
for name in ("MDS", "LitData"):
    for kind, where in (("file", source), ("memory", io.BytesIO(data))):
        pixels = writers[name](Image.open(where))
        off[name, kind] = int(np.abs(pixels.astype(int) - original).max())
        print(f"{name}, nothing edited, opened from {kind}: changed by up to {off[name, kind]} gray levels")

failures = []
for edit, (want, stored) in seen.items():
    for name, value in stored.items():
        copied = edit in ("thumbnail", "draft", "corner painted black") and name in ("MDS", "LitData", "JXL")
        if value != ("640x512 white" if copied else want):
            failures.append(f"{edit}, {name}: {value}")
if seen["thumbnail"][0] == "640x512 white" or seen["corner painted black"][0] != "640x512 black":
    failures.append("the edits themselves")
if any(value != 0 if kind == "file" else value < 5 for (_, kind), value in off.items()):
    failures.append(f"quality: {off}")
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py" "$work" 2> "$work/errors" || { tail -20 "$work/errors" >&2; exit 1; }
