"""Errors that a user can mend, told as one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user gave or lacks; its text says what, what is accepted, and what to do."""


def run_main(main: Callable[[], None]) -> None:
    """Run a script's `main`; what a user can mend becomes a sentence on stderr and exit status 1.

    That is a `UserError`, or the system's refusal to read or write a file: it names the file.
    """
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to go on")
