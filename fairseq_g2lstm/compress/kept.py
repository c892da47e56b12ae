"""Files in which measurements are kept from one call to the next."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints import whole_file


def file_digest(*paths: Path) -> str:
    """SHA-256 of files one after another.

    Raises:
        FileNotFoundError: there is none, or one is missing.
    """
    if not paths:
        raise FileNotFoundError("no file of the split: give one that fairseq-preprocess made")
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file that is either complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        Path(unfinished).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        ValueError: the file holds something else, or a part of it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no measurements, or not all of them: delete it")
    return content
