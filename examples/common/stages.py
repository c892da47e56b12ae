"""Preparation in stages, each skipped by a later run while its inputs and options are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from examples.common.errors import UserError
from examples.common.files import write_text

Fingerprint = dict[str, Any]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(path: Path, known: Fingerprint | None = None) -> Fingerprint | None:
    """Size (bytes), modification time (ns) and SHA-256 of a file; None where there is none.

    The hash is taken from `known` while size and time are unchanged, so that gigabytes of text
    are not read again by each run.
    """
    if not path.is_file():
        return None
    stat = path.stat()
    if known and (known["size"], known["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns):
        return known
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256_of(path)}


class Stages:
    """Runs the stages of one output directory and keeps a stamp of each under `.stages/`.

    Args:
        directory: the output directory; created.
        say: receives one line a stage.
    """

    def __init__(self, directory: Path, say: Callable[[str], None] = print) -> None:
        self.directory = directory
        self.say = say
        try:
            (directory / ".stages").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {directory}: {error.strerror}") from error

    def run(
        self,
        name: str,
        work: Callable[[], str | None],
        *,
        inputs: Iterable[Path] = (),
        outputs: Iterable[Path],
        options: Mapping[str, Any] | None = None,
    ) -> bool:
        """Do `work` unless it was done with these inputs and options and its outputs stand.

        Args:
            name: the stage's name, used for its stamp.
            work: writes the outputs; may return a remark for the message.
            inputs: files that are read; a change of content redoes the stage.
            outputs: files, or directories of files, that are written.
            options: whatever else decides the result; must survive JSON.

        Returns:
            True where the work was done, False where it was skipped.
        """
        stamp_path = self.directory / ".stages" / f"{name}.json"
        inputs, outputs = list(inputs), list(outputs)
        wanted_options = json.loads(json.dumps(options or {}))
        stamp = self._load(stamp_path)
        if (
            stamp
            and stamp["options"] == wanted_options
            and self._same(stamp["inputs"], inputs)
            and self._same(stamp["outputs"], outputs)
        ):
            self.say(f"{name}: up to date")
            return False
        stamp_path.unlink(missing_ok=True)
        before = self._fingerprints(inputs)
        self.say(f"{name}: working" + (" again, its inputs or options changed" if stamp else ""))
        remark = work()
        record = {
            "options": wanted_options,
            "inputs": before,
            "outputs": self._fingerprints(outputs),
        }
        write_text(stamp_path, json.dumps(record, indent=1) + "\n")
        self.say(f"{name}: done" + (f", {remark}" if remark else ""))
        return True

    def _load(self, path: Path) -> dict[str, Any] | None:
        try:
            stamp = json.loads(path.read_text(encoding="utf-8"))
            return stamp if {"options", "inputs", "outputs"} <= stamp.keys() else None
        except (OSError, ValueError, AttributeError):
            return None

    def _key(self, path: Path) -> str:
        path, directory = path.resolve(), self.directory.resolve()
        return str(path.relative_to(directory) if path.is_relative_to(directory) else path)

    def _files(self, paths: list[Path]) -> list[Path]:
        files: list[Path] = []
        for path in paths:
            files += sorted(path.iterdir()) if path.is_dir() else [path]
        return files

    def _fingerprints(self, paths: list[Path]) -> dict[str, Fingerprint | None]:
        return {self._key(path): fingerprint(path) for path in self._files(paths)}

    def _same(self, recorded: dict[str, Fingerprint | None], paths: list[Path]) -> bool:
        files = {self._key(path): path for path in self._files(paths)}
        if files.keys() != recorded.keys():
            return False
        for key, path in files.items():
            known = recorded[key]
            now = fingerprint(path, known)
            if not known or not now or known["sha256"] != now["sha256"]:
                return False
        return True
