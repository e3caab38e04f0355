"""`python -m ddfnet.zoo ...`: the same as `python -m ddfnet zoo ...`."""

import sys

from ddfnet.__main__ import command_line

if __name__ == "__main__":
    command_line(["zoo", *sys.argv[1:]])
