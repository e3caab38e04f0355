"""What `train.py` and `eval.py` share: exit codes, and errors a person can read."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from ddfnet.errors import NonFiniteLossError, UserError

EXIT_USER_ERROR = 2


def run(main: Callable[[], int]) -> None:
    """Runs a command and exits with its code: 0 done, 1 failed, 2 a mistake in the input, 75 start me again.

    A `UserError` is printed without a traceback, once however many processes there are.
    """
    try:
        code = main()
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        code = EXIT_USER_ERROR
    except NonFiniteLossError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"{Path(sys.argv[0]).name}: stopped: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    sys.exit(code)
