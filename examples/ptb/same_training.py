"""Whether train.sh can go on: whether its folder holds the same training, and a whole checkpoint.

    python -m examples.ptb.same_training SAVE_DIR [all of fairseq-train's arguments]
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from examples.common.checkpoints import replace_cut_off
from examples.common.errors import UserError, run_main
from examples.ptb.fairseq_options import settings_of
from examples.ptb.train_log import read_training, setting
from examples.ptb.trained_runs import changed_options


def check_same_training(save_dir: Path, arguments: list[str]) -> None:
    """Hold fairseq-train's arguments against the options that the folder's log tells; another length is welcome.

    Raises:
        UserError: the training there was begun with others, or with other data.
    """
    try:
        training = read_training(save_dir / "train.log")
    except UserError:
        return  # a checkpoint that another command put there
    try:
        settings = settings_of(arguments)
    except UserError:
        return  # fairseq-train will say why
    changed = changed_options(training.sessions, settings)
    before, now = (str(setting(each, "data")) for each in (training.settings, settings))
    # a folder that is not there may have been moved
    if Path(before).exists() and Path(now).exists() and not Path(before).samefile(now):
        changed.append(f"data {before}")
    if changed:
        raise UserError(
            f"{save_dir} holds a training with other options ({', '.join(changed)}); give another SAVE_DIR, or delete "
            "that folder to train anew"
        )


def main() -> None:
    """The command."""
    if len(sys.argv) < 3:
        sys.exit("usage: python -m examples.ptb.same_training SAVE_DIR [fairseq-train's arguments]")
    logging.basicConfig(level=logging.WARNING)  # or fairseq's import sets everyone's to its level of detail
    check_same_training(Path(sys.argv[1]), sys.argv[2:])
    replace_cut_off(Path(sys.argv[1]))


if __name__ == "__main__":
    run_main(main)
