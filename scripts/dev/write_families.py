#!/usr/bin/env python
"""Write the table of docs/reference/families.md: what works with the smallest classifier of each family of timm.

    python scripts/dev/write_families.py --missing    # those that the table lacks
    python scripts/dev/write_families.py fastvit swin_transformer

Each family runs in a process of its own with a limit of its time; the page is written after each, so that a run may be
ended at any time and continued with --missing. All families together take about 25 minutes of one core.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from a checkout without `pip install`

import timm
import torch

from ddfnet.utils import markdown
from ddfnet.utils.cli import HelpFormatter
from ddfnet.utils.files import write_text
from scripts.dev.families import REDUCED, STEPS, Outcome, families, try_family

PAGE = ROOT / "docs" / "reference" / "families.md"
COLUMNS = ("family", "model", "pixels", *STEPS, "seconds")
WITH = "timm {}, PyTorch {}, on a CPU."


def rows(page: str) -> dict[str, tuple[str, ...]]:
    """The rows of the table, by family."""
    table = page.partition("<!-- begin families -->")[2].partition("<!-- end families -->")[0]
    cells = [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in table.splitlines() if "|" in line]
    return {row[0].strip("`"): row for row in cells[2:]}


def row(outcome: Outcome) -> tuple[str, ...]:
    steps = [outcome.steps.get(step, "-").replace("|", "/") for step in STEPS]
    reduced = "".join(f", {key} {value}" for key, value in REDUCED.get(outcome.family, {}).items())
    return (outcome.family, outcome.model + reduced, str(outcome.size), *steps, f"{outcome.seconds:.0f}")


def filled(page: str, table: dict[str, tuple[str, ...]]) -> str:
    """The page with these rows, and what they add up to."""
    whole = sum(all(cell == "yes" for cell in cells[3:-1]) for cells in table.values())
    total = f"{whole} of {len(table)} measured families pass every step. "
    total += WITH.format(timm.__version__, torch.__version__)
    missing = [family for family in families() if family not in table]
    total += f"\n\nNot measured yet: {', '.join(missing)}." * bool(missing)
    lines = markdown.table(COLUMNS, [table[family] for family in sorted(table)])
    return markdown.fill(page, {"families": lines, "total": total})


def main(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(1)  # processes are forked
    page = PAGE.read_text()
    table = {family: cells for family, cells in rows(page).items() if family in families()}
    wanted = arguments.families or [family for family in families() if family not in table or not arguments.missing]
    for family in wanted:
        with tempfile.TemporaryDirectory() as folder:
            outcome = try_family(family, Path(folder), limit=arguments.limit)
            if any(text.startswith("FAILS") for text in outcome.steps.values()):
                print((Path(folder) / "log.txt").read_text()[-3000:])
        table[family] = row(outcome)
        print(" | ".join(table[family]), flush=True)
        write_text(PAGE, filled(page, table))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="a module of timm.models (default: all)")
    parser.add_argument("--missing", action="store_true", help="only those that the table lacks")
    parser.add_argument("--limit", type=int, default=240, metavar="SECONDS", help="for each (default: %(default)s)")
    sys.exit(main(parser.parse_args()))
