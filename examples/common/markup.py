"""Text out of the marked-up files in which shared tasks publish it, line by line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from examples.common.errors import UserError
from examples.common.files import read_lines

_SEGMENT = re.compile(r"<seg id\s*=\s*\"?\d+\"?\s*>\s*(.*?)\s*</seg>", re.IGNORECASE)
_DROPPED = ("<url>", "<talkid>", "<keywords>")
_STRIPPED = re.compile(r"</?(?:title|description)>")


def read_segments(path: Path) -> Iterator[str]:
    """The segments of a test set's XML or SGML file, each on a line of its own.

    The files are not parsed: some are no well-formed XML, and their entities are left as they are,
    as in the community's preparations. A typographic apostrophe becomes a plain one, likewise.

    Raises:
        UserError: the file holds no segment.
    """
    found = False
    for line in read_lines(path):
        if match := _SEGMENT.search(line):
            found = True
            yield match[1].replace("’", "'")
    if not found:
        raise UserError(f"{path} holds no <seg id=…> line; is it the test set's XML or SGML file?")


def read_tagged(path: Path) -> Iterator[str]:
    """The lines of IWSLT's `train.tags.*`: sentences, titles, descriptions, without tags."""
    for line in read_lines(path):
        if not any(tag in line for tag in _DROPPED):
            yield _STRIPPED.sub("", line).strip()
