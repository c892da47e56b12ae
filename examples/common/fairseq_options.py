"""fairseq-train's options, read without training.

    python -m examples.common.fairseq_options [all of fairseq-train's arguments]

fails with fairseq's own sentence where fairseq-train would refuse them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys

from examples.common.errors import UserError, run_main


def settings_of(arguments: list[str]) -> str:
    """The options as fairseq-train's log tells them. A --user-dir must stand on this command's line, too.

    Raises:
        UserError: fairseq-train would refuse them.
    """
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = options.parse_args_and_arch(options.get_training_parser(), input_args=arguments)
            return str(convert_namespace_to_omegaconf(parsed))
    except SystemExit as error:
        last = (said.getvalue().strip().splitlines() or [str(error)])[-1]
        raise UserError(f"fairseq-train refuses its options: {last.partition('error: ')[2] or last}") from error
    except ValueError as error:
        raise UserError(f"fairseq-train refuses its options: {error}") from error


def main() -> None:
    """The command."""
    logging.basicConfig(level=logging.WARNING)  # or fairseq's import sets everyone's to its level of detail
    settings_of(sys.argv[1:])


if __name__ == "__main__":
    run_main(main)
