"""Downloads that are whole or not there, resumed where the server allows, and checked.

A file is fetched under a temporary name and gets its own only after its length and checksum agree.
Where no checksum is published here, the first download's SHA-256 is recorded in `checksums.json`
beside it and later uses are held against that.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from examples.common.archives import check_archive
from examples.common.errors import UserError
from examples.common.files import part_path, write_text
from examples.common.stages import fingerprint

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Remote:
    """A file on the net.

    Attributes:
        url: where it is.
        checksum: `sha256:HEX` or `md5:HEX` where it is known.
        by_hand: what a user without access should do, one clause.
    """

    url: str
    checksum: str | None = None
    by_hand: str = "fetch it by hand"

    @property
    def name(self) -> str:
        """The file's own name."""
        return PurePosixPath(urlsplit(self.url).path).name


def fetch(remote: Remote, directory: Path) -> Path:
    """The file in `directory`, downloaded unless it is there already; checked either way.

    Raises:
        UserError: no connection, a cut-off download (a second run resumes it), or a file that is
            not the one expected.
    """
    if not remote.name:
        raise UserError(f"{remote.url} does not end in a file's name; {remote.by_hand}")
    path = directory / remote.name
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _download(remote, path)
        verify(path, remote)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def verify(path: Path, remote: Remote) -> None:
    """Hold a file against its known checksum, else against the one recorded at its first use.

    Raises:
        UserError: they differ, or a file without a known checksum is no whole archive.
    """
    records_path = path.parent / "checksums.json"
    records = _read_json(records_path)
    record = records.get(path.name, {})
    found = fingerprint(path, record or None)
    assert found is not None
    same = bool(record) and record["sha256"] == found["sha256"]
    if remote.checksum:
        if not (same and record.get("checked") == remote.checksum):
            compare_checksum(path, remote)
        found = {**found, "checked": remote.checksum}
    elif not record:
        check_archive(path)
        print(
            f"{path}: no checksum is known for it; recording SHA-256 {found['sha256']} in "
            f"{records_path} to hold later uses against"
        )
    elif not same:
        raise UserError(
            f"{path} has SHA-256 {found['sha256']}, but {record['sha256']} was recorded in "
            f"{records_path}; delete the file to fetch it anew, or the record to accept it"
        )
    if found != record:
        try:
            write_text(records_path, json.dumps({**records, path.name: found}, indent=1) + "\n")
        except OSError as error:  # of a folder that others own
            print(f"{records_path} cannot be written, and later uses not be held against this one: {error.strerror}")


def compare_checksum(path: Path, remote: Remote) -> None:
    """Hold a file against the checksum that is known for it.

    Raises:
        UserError: they differ.
    """
    kind, _, expected = (remote.checksum or "").partition(":")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, kind).hexdigest()
    if found != expected:
        raise UserError(
            f"{path} is not the file at {remote.url}: its {kind} is {found}, "
            f"expected {expected}; delete it and run again, or {remote.by_hand}"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _download(remote: Remote, path: Path) -> None:
    """Fetch into `path`, by way of a `.part` file whose validator stands in `.part.json`."""
    part = part_path(path)
    notes = part.with_name(part.name + ".json")
    validator = str(_read_json(notes).get("validator") or "")
    start = part.stat().st_size if part.exists() and validator else 0
    # Bytes as they are on the server: a transparently decoded gzip has another length and checksum.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(remote.url, headers=headers), timeout=_TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            part.unlink()
            return _download(remote, path)
        raise UserError(
            f"{remote.url} answers {error.code} {error.reason}; {remote.by_hand}"
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"cannot reach {remote.url} ({reason}); {remote.by_hand}") from error
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            return _download(remote, path)
        start = start if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        etag = response.headers.get("ETag", "")
        # A weak ETag does not vouch for single bytes.
        strong = etag if etag and not etag.startswith("W/") else None
        write_text(
            notes, json.dumps({"validator": strong or response.headers.get("Last-Modified")}) + "\n"
        )
        print(f"{'resuming' if resumed else 'fetching'} {remote.url}")
        received = _receive(response, part, start, total, remote)
    if total is not None and received != total:
        raise UserError(
            f"{remote.url} broke off after {received} of {total} bytes; run again to go on, "
            f"or {remote.by_hand}"
        )
    try:
        if remote.checksum:
            compare_checksum(part, remote)
        else:
            check_archive(part, path.name)
    except UserError:
        part.unlink()
        notes.unlink()
        raise
    os.replace(part, path)
    notes.unlink()


def _receive(
    response: http.client.HTTPResponse, part: Path, start: int, total: int | None, remote: Remote
) -> int:
    """Append the body to `part`; its size in bytes after that, also when the server broke off."""
    received = start
    with (
        part.open("ab" if start else "wb") as stream,
        tqdm(
            desc=remote.name, initial=start, total=total, unit="B", unit_scale=True, disable=None
        ) as bar,
    ):
        while True:
            try:
                chunk = response.read(_CHUNK)
            except http.client.IncompleteRead as error:
                stream.write(error.partial)
                return received + len(error.partial)
            except OSError as error:
                raise UserError(
                    f"{remote.url} broke off after {received} bytes ({error}); run again to go on"
                ) from error
            if not chunk:
                return received
            stream.write(chunk)
            received += len(chunk)
            bar.update(len(chunk))
