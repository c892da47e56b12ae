"""Downloads that break off, lie or resume, and the WMT'14 example on archives served from here."""

import gzip
import hashlib
import io
import json
import random
import re
import tarfile
import threading
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from example_texts import stand_in_for_fairseq_preprocess

from examples.common import download, preprocess
from examples.common.archives import check_archive, extract
from examples.common.download import Remote, fetch
from examples.common.errors import UserError
from examples.iwslt14 import prepare as iwslt14
from examples.wmt14_en_de import prepare as wmt14


def tar_of(files: dict[str, str | bytes], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


# gzip writes the time into its header: without a fixed one, processes that run tests side by side disagree about it.
ARCHIVE = gzip.compress(
    tar_of({"folder/text": random.Random(0).randbytes(50_000)}, mode="w"), mtime=0
)


@dataclass
class Site:
    """What the server on 127.0.0.1 holds, how it behaves, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=lambda: {"/data.tgz": ARCHIVE})
    etag: str | None = '"one"'
    ranges: bool = True
    lengths: bool = True
    stop_after: int | None = None  # bytes of one answer
    requests: list[str | None] = field(default_factory=list)  # their Range headers


class Handler(BaseHTTPRequestHandler):
    def __init__(self, site: Site, *arguments) -> None:
        self.site = site
        super().__init__(*arguments)

    def do_GET(self) -> None:
        site, wanted = self.site, self.headers.get("Range")
        site.requests.append(wanted)
        content = site.files.get(self.path)
        if content is None:
            return self.send_error(404)
        start = 0
        if wanted and site.ranges and self.headers.get("If-Range") == site.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if site.lengths:
            self.send_header("Content-Length", str(len(content) - start))
        if site.etag:
            self.send_header("ETag", site.etag)
        self.end_headers()
        self.wfile.write(content[start:][: site.stop_after])

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of the tests is this machine."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "*")


@pytest.fixture
def site():
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, site))
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield site
    server.shutdown()
    server.server_close()


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def remote(site: Site, checksum: str | None = None) -> Remote:
    return Remote(f"{site.url}/data.tgz", checksum, by_hand="use --archive PATH")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    "checksum",
    [
        None,
        sha256(ARCHIVE),
        "md5:" + hashlib.md5(ARCHIVE).hexdigest(),
    ],
    ids=["no checksum", "sha256", "md5"],
)
def test_a_download_is_fetched_once(site, tmp_path, checksum):
    for _ in range(2):
        assert fetch(remote(site, checksum), tmp_path).read_bytes() == ARCHIVE
    assert site.requests == [None]
    assert names(tmp_path) == {"data.tgz", "checksums.json"}


def test_a_download_that_broke_off_is_resumed(site, tmp_path):
    site.stop_after = 20_000
    with pytest.raises(
        UserError, match=rf"broke off after 20000 of {len(ARCHIVE)} bytes; run again"
    ):
        fetch(remote(site), tmp_path)
    assert names(tmp_path) == {"data.tgz.part", "data.tgz.part.json"}
    site.stop_after = None
    assert fetch(remote(site), tmp_path).read_bytes() == ARCHIVE
    assert site.requests == [None, "bytes=20000-"]
    assert names(tmp_path) == {"data.tgz", "checksums.json"}


@pytest.mark.parametrize("change", ["no ranges", "other file", "no validator", "weak validator"])
def test_what_cannot_be_resumed_starts_over(site, tmp_path, change):
    site.stop_after = 20_000
    if change == "no validator":
        site.etag = None
    if change == "weak validator":
        site.etag = 'W/"one"'
    with pytest.raises(UserError, match="broke off"):
        fetch(remote(site), tmp_path)
    site.stop_after = None
    if change == "no ranges":
        site.ranges = False
    if change == "other file":
        site.etag = '"two"'
        site.files["/data.tgz"] = tar_of({"text": b"new" * 30_000})
    assert fetch(remote(site), tmp_path).read_bytes() == site.files["/data.tgz"]
    if change in ("no validator", "weak validator"):  # the file is the same, and might have been gone on with
        assert site.requests == [None, None]


def test_a_part_as_long_as_the_file_starts_over(site, tmp_path):
    (tmp_path / "data.tgz.part").write_bytes(b"x" * len(ARCHIVE))
    (tmp_path / "data.tgz.part.json").write_text('{"validator": "\\"one\\""}')
    assert fetch(remote(site), tmp_path).read_bytes() == ARCHIVE
    assert site.requests == [f"bytes={len(ARCHIVE)}-", None]


def test_a_cut_that_no_length_tells_is_found_in_the_archive(site, tmp_path):
    site.lengths, site.stop_after = False, 20_000
    with pytest.raises(UserError, match="data.tgz is cut off or no .tgz file"):
        fetch(remote(site), tmp_path)
    assert names(tmp_path) == set()
    site.stop_after = None
    assert fetch(remote(site), tmp_path).read_bytes() == ARCHIVE


def test_wrong_bytes_are_thrown_away(site, tmp_path):
    site.files["/data.tgz"] = ARCHIVE[:-9] + b"x" + ARCHIVE[-8:]
    with pytest.raises(UserError, match=r"its sha256 is \w{64}, expected \w{64}; .*--archive PATH"):
        fetch(remote(site, sha256(ARCHIVE)), tmp_path)
    assert names(tmp_path) == set()
    site.files["/data.tgz"] = ARCHIVE
    assert fetch(remote(site, sha256(ARCHIVE)), tmp_path).read_bytes() == ARCHIVE


def test_a_page_in_place_of_an_archive_is_thrown_away(site, tmp_path):
    site.files["/data.tgz"] = b"<html>Please log in</html>"
    with pytest.raises(UserError, match="is cut off or no .tgz file"):
        fetch(remote(site), tmp_path)
    assert names(tmp_path) == set()


def test_an_unknown_checksum_is_recorded_saying_so_and_compared_later(site, tmp_path, capsys):
    path = fetch(remote(site), tmp_path)
    assert f"recording SHA-256 {sha256(ARCHIVE)[7:]}" in capsys.readouterr().out
    recorded = json.loads((tmp_path / "checksums.json").read_text())
    assert recorded["data.tgz"]["sha256"] == sha256(ARCHIVE)[7:]
    fetch(remote(site), tmp_path)
    assert capsys.readouterr().out == ""
    path.write_bytes(tar_of({"other": "text"}))
    with pytest.raises(UserError, match=r"was recorded in .*checksums.json; delete the file"):
        fetch(remote(site), tmp_path)


def test_a_file_put_there_by_hand_is_held_against_the_known_checksum(site, tmp_path):
    (tmp_path / "data.tgz").write_bytes(ARCHIVE)
    assert fetch(remote(site, sha256(ARCHIVE)), tmp_path).read_bytes() == ARCHIVE
    (tmp_path / "data.tgz").write_bytes(ARCHIVE[:1000])
    with pytest.raises(UserError, match="is not the file at http"):
        fetch(remote(site, sha256(ARCHIVE)), tmp_path)
    assert site.requests == []


def test_a_file_in_a_folder_that_cannot_be_written_is_checked_all_the_same(tmp_path, capsys, monkeypatch):
    path = tmp_path / "archive.tgz"
    path.write_bytes(ARCHIVE)

    def refuse(*_args: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(download, "write_text", refuse)
    url = f"https://elsewhere/{path.name}"
    download.verify(path, Remote(url, f"sha256:{hashlib.sha256(ARCHIVE).hexdigest()}"))
    assert "checksums.json cannot be written" in capsys.readouterr().out
    with pytest.raises(UserError, match="is not the file at https://elsewhere/archive.tgz"):
        download.verify(path, Remote(url, f"sha256:{'0' * 64}"))


def test_a_missing_page_and_a_missing_server_tell_what_to_do(site, tmp_path):
    with pytest.raises(UserError, match=r"none.tgz answers 404 Not Found; use --archive PATH"):
        fetch(Remote(f"{site.url}/none.tgz", by_hand="use --archive PATH"), tmp_path)
    with pytest.raises(UserError, match=r"cannot reach http://127.0.0.1:9/data.tgz .*; use --arch"):
        fetch(Remote("http://127.0.0.1:9/data.tgz", by_hand="use --archive PATH"), tmp_path)
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("de-en.tgz", "cannot reach de-en.tgz .*unknown url type.*; fetch it by hand"),
        ("http://127.0.0.1:9/", "http://127.0.0.1:9/ does not end in a file's name; fetch it by hand"),
    ],
)
def test_what_is_no_address_of_a_file_gets_a_sentence(tmp_path, url, message):
    with pytest.raises(UserError, match=message):
        fetch(Remote(url), tmp_path)


def test_iwslt14_without_net_names_the_file_and_the_option(tmp_path):
    given = ["--out", str(tmp_path), "--url", "http://127.0.0.1:9/de-en.tgz"]
    with pytest.raises(UserError, match=r"cannot reach .*fetch de-en.tgz .* with --archive PATH"):
        iwslt14.prepare(iwslt14.parse_arguments(given))


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w"])
def test_wanted_files_are_taken_out_and_nothing_else(tmp_path, mode):
    archive = tmp_path / "a.tar"
    archive.write_bytes(tar_of({"../../evil": "x", "/etc/evil": "x", "./in/text": "good"}, mode))
    extract(archive, {"text": tmp_path / "out" / "text", "evil": tmp_path / "out" / "evil"})
    assert (tmp_path / "out" / "text").read_text() == "good"
    assert names(tmp_path) == {"a.tar", "out"}
    assert names(tmp_path / "out") == {"text", "evil"}


def test_links_in_an_archive_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        link = tarfile.TarInfo("text")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    with pytest.raises(UserError, match=r"a\.tgz lacks text; is it the right archive\?"):
        extract(tmp_path / "a.tgz", {"text": tmp_path / "text"})
    assert names(tmp_path) == {"a.tgz"}


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w"])
def test_a_cut_off_archive_gives_no_file(tmp_path, mode):
    archive = tmp_path / "a.tgz"
    archive.write_bytes(tar_of({"text": random.Random(0).randbytes(50_000)}, mode)[:30_000])
    with pytest.raises(UserError, match="a.tgz is cut off or no tar archive"):
        extract(archive, {"text": tmp_path / "out" / "text"})
    assert not (tmp_path / "out" / "text").exists()
    if mode == "w:gz":
        with pytest.raises(UserError, match="is cut off or no .tgz file"):
            check_archive(archive)


WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "self-made": "Eigenbau"}


def wmt_archives(sentences: int) -> dict[str, bytes]:
    """Archives of the published ones' structure and names."""
    rng = random.Random(3)
    archives = {}
    for corpus in (*wmt14.TRAINING, wmt14.VALID, wmt14.TEST):
        pairs = [rng.choices(list(WORDS.items()), k=rng.randint(1, 9)) for _ in range(sentences)]
        files = {}
        for side, name in enumerate(corpus.files):
            lines = [" ".join(word[side] for word in pair) + "…" for pair in pairs]
            if corpus.marked_up:
                lines = ["<srcset>", *(f'<seg id="{i}">{x}</seg>' for i, x in enumerate(lines, 1))]
            else:
                # An empty side, a pair that is too long, and one whose lengths are too far apart.
                lines += ["" if side else "x", "x " * 251, "x " * (9 if side else 2)]
            folder = "" if corpus.name == "commoncrawl" else "training/"
            files[folder + name] = "\n".join(lines) + "\n"
        archives["/" + corpus.path] = tar_of({"README": "read", **files})
    return archives


@pytest.fixture
def quick_preprocess(monkeypatch):
    """Stands in for fairseq-preprocess, which takes seconds to start."""
    monkeypatch.setattr(preprocess, "fairseq_preprocess", stand_in_for_fairseq_preprocess)


def wmt_run(out: Path, *more: str) -> None:
    given = ["--out", str(out), "--merges", "30", "--skip-checksums", *more]
    wmt14.prepare(wmt14.parse_arguments(given))


def test_wmt14_is_prepared_from_the_net_and_a_second_run_does_nothing(
    site, tmp_path, quick_preprocess, capsys
):
    site.files = wmt_archives(40)
    wmt_run(tmp_path, "--base-url", site.url + "/", "--workers", "2")
    lines = {
        path.relative_to(tmp_path).as_posix(): path.read_text().splitlines()
        for folder in ("text", "bpe")
        for path in (tmp_path / folder).iterdir()
    }
    # The empty and the long pair of each corpus go at once, the uneven one after segmentation.
    assert len(lines["text/train.en"]) == len(lines["text/train.de"]) == 3 * (40 + 1)
    assert len(lines["bpe/train.en"]) == len(lines["bpe/train.de"]) <= 3 * 40
    assert len(lines["bpe/valid.de"]) == len(lines["bpe/test.de"]) == 40
    text = "\n".join(lines["text/train.en"])
    assert "self @-@ made" in text
    assert "…" not in text
    assert "…" in "\n".join(lines["text/test.en"])
    capsys.readouterr()
    requests = len(site.requests)
    wmt_run(tmp_path, "--base-url", site.url, "--workers", "2")
    *stages, _ = capsys.readouterr().out.splitlines()
    assert len(stages) == 16
    assert all(line.endswith(": up to date") for line in stages)
    assert len(site.requests) == requests == 5


def test_wmt14_takes_archives_that_are_there(tmp_path, quick_preprocess):
    (tmp_path / "archives").mkdir()
    for path, content in wmt_archives(40).items():
        (tmp_path / "archives" / Path(path).name).write_bytes(content)
    wmt_run(tmp_path / "out", "--archives", str(tmp_path / "archives"))
    assert (tmp_path / "out" / "data-bin" / "dict.de.txt").is_file()
    assert not (tmp_path / "out" / "download").exists()
    (tmp_path / "archives" / "test-full.tgz").unlink()
    with pytest.raises(UserError, match=r"no such file: .*test-full\.tgz; fetch https://www\.stat"):
        wmt_run(tmp_path / "out", "--archives", str(tmp_path / "archives"))


def test_wmt14_holds_archives_against_the_published_checksums(site, tmp_path):
    site.files = wmt_archives(5)
    given = ["--out", str(tmp_path), "--base-url", site.url]
    with pytest.raises(UserError, match="europarl.* expected 0224c7c710c8a063dfd893b0cc083020"):
        wmt14.prepare(wmt14.parse_arguments(given))
    assert names(tmp_path / "download") == set()
