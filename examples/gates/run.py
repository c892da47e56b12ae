"""A report of the gates of the quickstart's models.

    python -m examples.quickstart.run
    python -m examples.gates.run

writes report.html, and the tables and pictures that it is made of, to runs/gates.
"""

import shlex
import sys
from pathlib import Path

from examples.common.errors import UserError, run_main
from examples.common.options import docstring_parser
from examples.quickstart.arms import ARMS
from fairseq_g2lstm.gates.__main__ import main as make_report


def report_arguments(quickstart: Path, out: Path, more: list[str]) -> list[str]:
    """The arguments of `python -m fairseq_g2lstm.gates` for all models of a quickstart.

    Raises:
        UserError: there is no trained model in the folder.
    """
    arms = [arm for arm in ARMS if (quickstart / arm / "checkpoint_best.pt").is_file()]
    if not arms:
        raise UserError(
            f"no trained model in {quickstart}: make them with python -m examples.quickstart.run, or name the folder "
            "of one that was made by --quickstart"
        )
    checkpoints = [str(quickstart / arm / "checkpoint_best.pt") for arm in arms]
    return [*checkpoints, str(quickstart / "data-bin"), "--out", str(out), *more]


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = docstring_parser("examples.gates.run", __doc__, "\nOther options go to python -m fairseq_g2lstm.gates.")
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"), metavar="DIR",
                        help="where it wrote to (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/gates"), metavar="DIR", help="default: %(default)s")
    options, more = parser.parse_known_args(arguments)
    command = report_arguments(options.quickstart, options.out, more)
    print(shlex.join(["python", "-m", "fairseq_g2lstm.gates", *command]), flush=True)
    if make_report(command) != 0:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
