"""Whether a train.sh can go on: whether its folder holds the same training, and a whole checkpoint."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from examples.common.checkpoints import replace_cut_off
from examples.common.errors import UserError
from examples.common.fairseq_log import sessions_of, setting
from examples.common.fairseq_options import settings_of

# fairseq's options, as it logs them -> those of them that make a training another one
Identity = Callable[[str], dict[str, Any]]


def changed_options(sessions: Sequence[str], last: str, identity: Identity) -> list[str]:
    """What a session had otherwise than the last one, such as `gate_type sigmoid`.

    Args:
        sessions: fairseq's options of each, as it logs them.
        last: those of the last, or those that are asked for now.
        identity: what of them counts; what one of the two does not name is no difference.
    """
    expected, changed = identity(last), []
    for settings in sessions:
        for name, before in identity(settings).items():
            if before != expected.get(name, before) and f"{name} {before}" not in changed:
                changed.append(f"{name} {before}")
    return changed


def check_same_training(save_dir: Path, arguments: list[str], identity: Identity) -> None:
    """Hold fairseq-train's arguments against the options that the folder's log tells; another length is welcome.

    Args:
        save_dir: the folder.
        arguments: all of fairseq-train's.
        identity: as `changed_options` takes it.

    Raises:
        UserError: the training there was begun with others, or with other data.
    """
    log = save_dir / "train.log"
    sessions = sessions_of(log) if log.exists() else []
    if not sessions:
        return  # a checkpoint that another command put there
    try:
        settings = settings_of(arguments)
    except UserError:
        return  # fairseq-train will say why
    changed = changed_options(sessions, settings, identity)
    before, now = (str(setting(each, "data")) for each in (sessions[-1], settings))
    # a folder that is not there may have been moved
    if Path(before).exists() and Path(now).exists() and not Path(before).samefile(now):
        changed.append(f"data {before}")
    if changed:
        raise UserError(
            f"{save_dir} holds a training with other options ({', '.join(changed)}); give another SAVE_DIR, or delete "
            "that folder to train anew"
        )


def main_of(command: str, identity: Identity) -> None:
    """The command `python -m COMMAND SAVE_DIR [all of fairseq-train's arguments]`.

    Of several machines, NODE_RANK in the environment, the first alone replaces a checkpoint that was cut off.
    """
    if len(sys.argv) < 3:
        sys.exit(f"usage: python -m {command} SAVE_DIR [fairseq-train's arguments]")
    logging.basicConfig(level=logging.WARNING)  # or fairseq's import sets everyone's to its level of detail
    check_same_training(Path(sys.argv[1]), sys.argv[2:], identity)
    if os.environ.get("NODE_RANK", "0") == "0":
        replace_cut_off(Path(sys.argv[1]))
