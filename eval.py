#!/usr/bin/env python
"""Evaluate a checkpoint, each image exactly once.

  python eval.py --checkpoint runs/r50/best.pt
  torchrun --nproc-per-node 8 eval.py --checkpoint runs/r50/best.pt
  python eval.py --checkpoint zoo:NAME --data data/digits
  python eval.py --checkpoint official.pth.tar --model ddf_mul_resnet50 \\
    --data /data/imagenet/val
  python eval.py --checkpoint runs/r50/best.pt --data /data \\
    --sets val,real,v2,a,r,sketch
  python eval.py --checkpoint runs/r50/best.pt --data /data \\
    --sets val=/fast/val,v2

Model, classes and preprocessing come from the checkpoint, which may be of timm,
torchvision, Lightning and others, or a folder of the hub (hf-hub:ORG/NAME,
local-dir:FOLDER); bare state_dicts need --model. Prints top-1, top-5, expected
calibration error, loss and the number of images, and writes a folder:
report.json, report.md (one page to read), report.html (to look at mistakes and
filters), per_class.csv, and with matplotlib calibration.png, confusion.png and
mistakes.png (of multi-label checkpoints: no PNG). An earlier report there that
was made with other options is kept, in its sub-folder earlier/. Checkpoints of
other tasks are evaluated as their own configuration says (--data is its
data.root), with their own metrics and report.json alone.

--sets evaluates several sets in one go, a report folder for each, and writes
sets.json and sets.md:
  val     DATA/val, 1000 class folders
  real    DATA/val with the labels DATA/real.json (Beyer et al. 2020), correct
          if any of an image's is predicted
  v2      DATA/imagenetv2-matched-frequency-format-val, class folders 0 to 999
  a, r    DATA/imagenet-a, DATA/imagenet-r: only their 200 classes compete, as
          their authors have it
  sketch  DATA/sketch or DATA/imagenet-sketch
NAME=FOLDER names the folder of a set, or a set of your own: class folders that
are some of the checkpoint's classes, of which only these compete.

Exit codes: 0 done, 1 failed, 2 a mistake in the input.
"""

import argparse


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="PATH", help="best.pt, .safetensors, official checkpoint, zoo:NAME")
    add("--data", metavar="PATH", help="any form of docs/guides/data.md; other tasks: data.root (default: training's)")
    add("--sets", metavar="NAMES", help="several sets by name, comma-separated: see above; --data holds them")
    add("--tta", action="store_true", help="average over each image and its mirror image; wrong for digits, letters")
    add("--model", metavar="NAME", help="model name, for a file that does not say it")
    add("--weights", choices=("auto", "raw", "ema"), default="auto", help="auto: the EMA weights if there are any")
    add("--batch-size", type=int, metavar="N", help="images per process (default 128; other tasks: as in training)")
    add("--workers", default="auto", metavar="N", help="processes per rank that read data (default: by the cores)")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="auto: that of training")
    add("--device", choices=("auto", "cuda", "cpu", "mps"), default="auto", help="default %(default)s")
    add("--input-size", metavar="PIXELS", help="instead of the checkpoint's: 224, or 192x256 (height x width)")
    add("--crop-pct", type=float, metavar="FRACTION", help="instead of the checkpoint's: size / crop_pct is the resize")
    add("--crop-mode", metavar="MODE", help="instead of the checkpoint's: center, squash or border")
    add("--interpolation", metavar="NAME", help="instead of the checkpoint's: bilinear, bicubic, ...")
    add("--resize", metavar="KERNEL", help="instead of the checkpoint's: torch, or pillow for timm's pixels to the bit")
    add("--mean", metavar="R,G,B", help="instead of the checkpoint's: one value per channel, e.g. 0.5,0.5,0.5")
    add("--std", metavar="R,G,B", help="likewise")
    add("--max-pixels", type=int, metavar="N", help="of the largest image that is read (default: as in training)")
    add("--threshold", type=float, metavar="P", help="multi-label: of the sigmoid, instead of the checkpoint's")
    add(
        "--fuse-bn", action="store_true", help="fold batch normalization into convolutions: faster, same up to rounding"
    )
    add("--quiet", action="store_true", help="show no progress")
    add("--output", metavar="FOLDER", help="of the report (default: eval_NAME beside the checkpoint, or in runs/)")
    return parser.parse_args()


def main(arguments: argparse.Namespace) -> int:
    from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint

    evaluate_checkpoint(**vars(arguments))
    return 0


if __name__ == "__main__":
    parsed = parse_arguments()  # before the imports: --help need not wait for torch
    from ddfnet.utils.cli import run

    run(lambda: main(parsed))
