"""Taking single files out of tar archives."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from examples.common.errors import UserError
from examples.common.files import part_path

_OPENERS: dict[str, Callable[..., Any]] = {
    ".tgz": gzip.open,
    ".gz": gzip.open,
    ".xz": lzma.open,
}
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


def check_archive(path: Path, name: str | None = None) -> None:
    """Read a `.tgz`, `.gz` or `.xz` file to its end, where its own checksum stands.

    Args:
        path: the file.
        name: by which its kind is told, where that is not the path's name.

    Raises:
        UserError: it is cut off, damaged, or something else.
    """
    suffix = PurePosixPath(name or path.name).suffix
    opener = _OPENERS.get(suffix)
    if opener is None:
        return
    try:
        with opener(path, "rb") as stream:
            while stream.read(1 << 20):
                pass
    except (*_DAMAGED, OSError) as error:
        raise UserError(f"{name or path} is cut off or no {suffix} file: {error}") from error


def extract(archive: Path, wanted: Mapping[str, Path]) -> None:
    """Copy files out of a tar archive, compressed or not, each whole or not at all.

    Nothing is written but the given targets, whatever paths and links the archive holds.

    Args:
        archive: the archive.
        wanted: for each file's own name, without folders, where it goes.

    Raises:
        UserError: the archive is missing, damaged, or lacks a wanted file.
    """
    missing = dict(wanted)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                target = missing.get(PurePosixPath(member.name).name)
                if target is None or not member.isfile():
                    continue
                source = tar.extractfile(member)
                assert source is not None
                target.parent.mkdir(parents=True, exist_ok=True)
                part = part_path(target)
                try:
                    with source, part.open("wb") as stream:
                        shutil.copyfileobj(source, stream)
                    if part.stat().st_size != member.size:
                        raise EOFError(f"{member.name} is shorter than the archive says")
                    os.replace(part, target)
                finally:
                    part.unlink(missing_ok=True)
                del missing[PurePosixPath(member.name).name]
                if not missing:
                    return
    except _DAMAGED as error:
        raise UserError(f"{archive} is cut off or no tar archive: {error}") from error
    except OSError as error:
        raise UserError(f"cannot unpack {archive}: {error.strerror or error}") from error
    raise UserError(f"{archive} lacks {', '.join(sorted(missing))}; is it the right archive?")
