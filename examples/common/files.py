"""Reading line-aligned text, plain or compressed, and writing files that are whole or absent."""

from __future__ import annotations

import fcntl
import gzip
import lzma
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from examples.common.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PATIENCE = 12.0  # seconds for a folder that is held
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}


def find_text(prefix: Path | str, language: str) -> Path:
    """The file `PREFIX.LANGUAGE`, or the same with `.gz` or `.xz`, the first that exists.

    Raises:
        UserError: none of the three exists.
    """
    names = [Path(f"{prefix}.{language}{suffix}") for suffix in ("", *_OPENERS)]
    for name in names:
        if name.is_file():
            return name
    raise UserError(f"no such file: {names[0]} (nor {names[1].name}, nor {names[2].name})")


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file without their newline; only a newline ends a line.

    Raises:
        UserError: the file is missing, not UTF-8 (the line is named), or a damaged archive.
    """
    opener = _OPENERS.get(path.suffix, open)
    number = 0
    try:
        with opener(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}, is not UTF-8 ({error.reason}); convert the file, "
            "for example with iconv"
        ) from error
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is cut off or damaged after line {number}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def read_pairs(
    source: Path, target: Path, reader: Callable[[Path], Iterator[str]] = read_lines
) -> Iterator[tuple[str, str]]:
    """Pairs of lines of two aligned files.

    Args:
        source: one file.
        target: the other.
        reader: gives a file's lines; another one may leave out markup.

    Raises:
        UserError: the files have different numbers of lines; both numbers are given.
    """
    sources, targets = reader(source), reader(target)
    count = 0
    end = object()
    while True:
        left, right = next(sources, end), next(targets, end)
        if left is end and right is end:
            return
        if left is end or right is end:
            left_count = count + (left is not end) + sum(1 for _ in sources)
            right_count = count + (right is not end) + sum(1 for _ in targets)
            raise UserError(
                f"{source} has {left_count} lines but {target} has {right_count}; "
                "line n of one must be the translation of line n of the other"
            )
        count += 1
        yield left, right  # type: ignore[misc]


def part_path(path: Path) -> Path:
    """The temporary name beside `path` under which it is written until it is whole."""
    return path.with_name(path.name + ".part")


@contextmanager
def atomic_writers(*paths: Path) -> Iterator[list[IO[str]]]:
    """Open files for text under temporary names; all get their names at the end, or none does."""
    parts = [part_path(path) for path in paths]
    streams: list[IO[str]] = []
    try:
        for part in parts:
            part.parent.mkdir(parents=True, exist_ok=True)
            streams.append(part.open("w", encoding="utf-8", newline="\n"))
        yield streams
        for stream in streams:
            stream.close()
        for part, path in zip(parts, paths, strict=True):
            os.replace(part, path)
    finally:
        for stream in streams:
            with suppress(OSError):
                stream.close()
        for part in parts:
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    with atomic_writers(path) as (stream,):
        stream.write(text)


def save_picture(figure: Figure, path: Path) -> None:
    """Write a matplotlib figure as a PNG file, whole or not at all."""
    figure.savefig(part_path(path), dpi=150, format="png")
    os.replace(part_path(path), path)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside `path` that takes its place, and its name, at the end."""
    part, old = part_path(path), path.with_name(path.name + ".old")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def held_folder(folder: Path, what: str) -> Iterator[None]:
    """Holds a folder's lock, so that a second holder is refused, after some seconds for one that was told to end. The
    lock ends with the process, and with those that it started with close_fds=False, among them the processes that read
    data for a training, which notice its end after seconds; file systems without locks do without.

    Args:
        folder: created.
        what: the work that holds it, for the sentence.

    Raises:
        UserError: another process holds the folder, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    with lock:
        refused_at = time.monotonic() + PATIENCE
        while not _is_locked(lock):
            if time.monotonic() >= refused_at:
                raise UserError(f"another {what} is running in {folder}; end it first, or give another folder")
            time.sleep(0.1)
        os.set_inheritable(lock.fileno(), True)
        yield


def _is_locked(lock: IO[str]) -> bool:
    """Locks the file unless another process has; on a file system without locks it counts as locked."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
