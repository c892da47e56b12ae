"""What a training that was ended at any moment can go on from."""

import os
import shutil
import sys
import zipfile
from pathlib import Path

from examples.common.errors import UserError
from examples.common.files import part_path


def replace_cut_off(save_dir: Path) -> None:
    """Put the newest whole checkpoint in the place of a `checkpoint_last.pt` or `checkpoint_best.pt` that was cut off.

    fairseq writes the first of an update's checkpoints whole or not at all, and copies it to the others' names: a
    training that is ended meanwhile leaves a part of a copy, beside the file that it is of.

    Raises:
        UserError: no checkpoint is whole.
    """
    whole = [path for path in save_dir.glob("checkpoint*.pt") if zipfile.is_zipfile(path)]
    for copy in (save_dir / "checkpoint_last.pt", save_dir / "checkpoint_best.pt"):
        if copy in whole or not copy.exists():
            continue
        if not whole:
            raise UserError(f"{copy} is cut off, and no whole checkpoint stands beside it; delete it to train anew")
        newest = max(whole, key=lambda path: path.stat().st_mtime)
        shutil.copyfile(newest, part_path(copy))
        os.replace(part_path(copy), copy)
        print(f"{copy} was cut off: {newest.name} takes its place", file=sys.stderr, flush=True)
