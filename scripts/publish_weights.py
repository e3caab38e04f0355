#!/usr/bin/env python
"""Write weights as a folder in the layout of the Hugging Face hub.

  python scripts/publish_weights.py zoo:NAME --output published/digits
  python scripts/publish_weights.py runs/x/best.pt --output published/x \\
    --license mit --data "our images, 2026"
  python scripts/publish_weights.py runs/x/best.pt --output published/x \\
    --push ORG/NAME

timm reads the folder: config.json, model.safetensors and README.md (the model
card). After `import ddfnet`, the network comes back (tried before the folder
appears) from `timm.create_model("local-dir:FOLDER", pretrained=True)`. timm
before 1.0.26 cannot do that for its own models: these are refused there. --push
uploads the folder with huggingface_hub, as the account that is logged in there;
a new repository is public, even where no license is stated, unless --private is
given.
Exit codes: 0 done, 1 failed, 2 a mistake in the input.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without `pip install`


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a classifier: best.pt, .safetensors, official checkpoint, zoo:NAME")
    add("--output", required=True, type=Path, metavar="FOLDER", help="new folder")
    add("--model", metavar="NAME", help="model name, for a file that does not say it")
    add("--weights", choices=("auto", "raw", "ema"), default="auto", help="auto: the EMA weights if there are any")
    add("--name", metavar="NAME", help="title, MODEL or MODEL.TAG (default: that of the zoo, or the model)")
    add("--license", metavar="ID", help="e.g. mit (default: that of the zoo, or none stated)")
    add("--data", metavar="TEXT", help="what it was trained on (default: what the zoo says, or not stated)")
    add("--push", metavar="ORG/NAME", help="upload the folder there when it is complete; a new one is public")
    add("--private", action="store_true", help="with --push: into a private repository, made if there is none")
    add("--quiet", action="store_true", help="show no progress")
    return parser.parse_args(arguments)


def main(arguments: argparse.Namespace) -> int:
    from ddfnet.inference.publish import publish

    publish(**vars(arguments))
    return 0


if __name__ == "__main__":
    parsed = parse_arguments()  # before the imports: --help need not wait for torch
    from ddfnet.utils.cli import run

    run(lambda: main(parsed))
