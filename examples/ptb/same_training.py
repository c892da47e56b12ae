"""Whether train.sh can go on: whether its folder holds the same training, and a whole checkpoint.

    python -m examples.ptb.same_training SAVE_DIR [all of fairseq-train's arguments]
"""

from __future__ import annotations

from pathlib import Path

from examples.common import same_training
from examples.common.errors import run_main
from examples.ptb.trained_runs import changed_options


def check_same_training(save_dir: Path, arguments: list[str]) -> None:
    """Hold fairseq-train's arguments against the options that the folder's log tells; another length is welcome.

    Raises:
        UserError: the training there was begun with others, or with other data.
    """
    same_training.check_same_training(save_dir, arguments, changed_options)


def main() -> None:
    """The command."""
    same_training.main_of("examples.ptb.same_training", changed_options)


if __name__ == "__main__":
    run_main(main)
