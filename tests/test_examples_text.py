"""The text examples: reading, tokenising, cleaning, segmenting, staging, scoring."""

import io
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from example_texts import OPENERS, WORDS, corpus, stand_in_for_fairseq_preprocess, write

from examples.common import preprocess
from examples.common.errors import UserError
from examples.common.files import (
    atomic_directory,
    atomic_writers,
    find_text,
    read_lines,
    read_pairs,
)
from examples.common.markup import read_segments, read_tagged
from examples.common.text import (
    Cleaning,
    LineFormat,
    apply_codes,
    learn_codes,
    spread,
    write_pairs,
)
from examples.iwslt14 import prepare as iwslt14


@pytest.mark.parametrize("suffix", OPENERS)
def test_text_is_read_plain_or_compressed_and_only_a_newline_ends_a_line(tmp_path, suffix):
    write(tmp_path / f"a.de{suffix}", "\ufeffä b\rc\u2028d\x85\n\nlast")
    assert list(read_lines(find_text(tmp_path / "a", "de"))) == ["ä b\rc\u2028d\x85", "", "last"]


def test_a_missing_text_names_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"no such file: .*a\.de \(nor a\.de\.gz, nor a\.de\.xz\)"):
        find_text(tmp_path / "a", "de")


def test_another_encoding_is_refused_by_line(tmp_path):
    (tmp_path / "a").write_bytes(b"fine\nf\xfcnf\n")
    with pytest.raises(UserError, match=r"a, line 2, is not UTF-8"):
        list(read_lines(tmp_path / "a"))


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_cut_off_text_is_refused(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", "".join(f"{random.random()}\n" for _ in range(2000)))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="cut off or damaged"):
        list(read_lines(path))


@pytest.mark.parametrize(("left", "right"), [(3, 5), (5, 3), (0, 2), (4, 3)])
def test_different_numbers_of_lines_are_both_told(tmp_path, left, right):
    paths = write(tmp_path / "a", "x\n" * left), write(tmp_path / "b", "y\n" * right)
    with pytest.raises(UserError, match=f"a has {left} lines but .*b has {right};"):
        list(read_pairs(*paths))


@pytest.mark.parametrize(
    ("language", "line", "tokens"),
    [
        (
            "en",
            'It\'s 5,300 -- "so-called" [U.S.] R&D.',
            "It &apos;s 5,300 -- &quot; so-called &quot; &#91; U.S. &#93; R &amp; D .",
        ),
        ("en", "We live in the U.S.", "We live in the U.S ."),
        ("en", "Well...", "Well ..."),
        ("en", "He said 'no.'", "He said &apos; no . &apos;"),
        ("de", "Das ist z. B. Nr. 5.", "Das ist z. B. Nr. 5 ."),
        ("de", "Ein  Halb\rsatz\u2028 ", "Ein Halb satz"),
        ("de", "", ""),
    ],
)
def test_tokens_are_those_of_moses(language, line, tokens):
    assert LineFormat()(line, language) == tokens


def test_tokenised_text_changes_only_in_case_and_whitespace():
    assert LineFormat("none")(" It 's\tA. ", "en") == "It 's A."
    assert LineFormat("none", lowercase=True)("ÄB", "de") == "äb"


def test_hyphens_are_split_and_punctuation_normalised_on_request():
    assert LineFormat(aggressive_dash_splits=True)("so-called", "en") == "so @-@ called"
    assert LineFormat("none", normalize=True)("„so“\u00ad – it’s", "en") == '"so" - it\'s'


def test_an_unknown_tokenizer_is_refused():
    with pytest.raises(UserError, match="tokenizer must be one of .*, got 'spm'"):
        LineFormat("spm")


@pytest.mark.parametrize(
    ("pair", "objection"),
    [
        (("a a", "b b b"), None),
        (("a a", "b b b b"), "ratio"),
        (("a a a a", "b b"), "ratio"),
        (("a " * 5, "b " * 5), None),
        (("a " * 6, "b " * 5), "length"),
        (("", "b"), "empty"),
        (("a", " "), "empty"),
        (("a" * 1000, "b"), None),
        (("a", "b" * 1001), "token"),
    ],
)
def test_cleaning_keeps_what_moses_keeps(pair, objection):
    assert Cleaning(max_length=5, max_ratio=1.5).objection(pair) == objection


def test_cleaning_without_limits_drops_only_empty_sides():
    cleaning = Cleaning(max_length=0, max_ratio=0)
    assert cleaning.objection(("a", "b " * 999)) is None
    assert cleaning.objection(("", "")) == "empty"


@pytest.mark.parametrize("limits", [{"max_length": -1}, {"max_ratio": 0.5}])
def test_senseless_limits_are_refused(limits):
    with pytest.raises(UserError, match="must be >= 1, or 0 for none"):
        Cleaning(**limits)


def test_cleaning_that_leaves_nothing_is_an_error_and_writes_nothing(tmp_path):
    with pytest.raises(UserError, match=r"left none of 2 pairs .*dropped: 2 ratio"):
        write_pairs([("a", "b b b")] * 2, tmp_path / "a", tmp_path / "b", Cleaning(9, 1.5))
    assert list(tmp_path.iterdir()) == []


def test_processes_keep_the_order():
    numbers = range(-9000, 1)
    assert list(spread(abs, numbers, workers=2)) == [abs(number) for number in numbers]


def test_reading_runs_not_far_ahead_of_the_processes():
    drawn = []
    results = spread(abs, (drawn.append(n) or n for n in range(100_000)), workers=2)
    next(results)
    assert len(drawn) < 10_000
    results.close()


def test_segmentation_equals_subword_nmt_by_command(tmp_path):
    prefix = corpus(tmp_path, "train", 300)
    texts = Path(f"{prefix}.de"), Path(f"{prefix}.en")
    outputs = tmp_path / "out.de", tmp_path / "out.en"
    learn_codes(texts, tmp_path / "codes", 15)
    apply_codes(texts, outputs, tmp_path / "codes", workers=2)

    command = [sys.executable, "-c", "from subword_nmt.subword_nmt import main; main()"]
    both = b"".join(path.read_bytes() for path in texts)
    codes = subprocess.run([*command, "learn-bpe", "-s", "15"], input=both, capture_output=True)
    assert (tmp_path / "codes").read_bytes() == codes.stdout
    for text, output in zip(texts, outputs, strict=True):
        segments = subprocess.run(
            [*command, "apply-bpe", "-c", str(tmp_path / "codes")],
            input=text.read_bytes(),
            capture_output=True,
        )
        assert output.read_bytes() == segments.stdout
        assert b"@@ " in segments.stdout


def test_changed_codes_are_not_remembered(tmp_path):
    texts = write(tmp_path / "a.de", "eins\n"), write(tmp_path / "a.en", "one\n")
    outputs = tmp_path / "b.de", tmp_path / "b.en"
    for codes, german in (("e i", "ei@@ n@@ s"), ("n s</w>", "e@@ i@@ ns")):
        write(tmp_path / "codes", f"#version: 0.2\n{codes}\n")
        apply_codes(texts, outputs, tmp_path / "codes")
        assert outputs[0].read_text() == german + "\n"


def test_too_few_pairs_for_the_merges_are_told(tmp_path):
    remark = learn_codes([write(tmp_path / "a", "ab ab\n")], tmp_path / "codes", 100)
    assert remark.startswith("only 1 merges")


@pytest.mark.parametrize(
    ("text", "merges", "message"),
    [
        ("ab ab\n", 0, "merges must be >= 1, got 0"),
        ("a b\n", 5, "cannot learn a byte-pair encoding from this text"),
    ],
)
def test_codes_that_cannot_be_learned_are_an_error_and_leave_no_file(
    tmp_path, text, merges, message
):
    with pytest.raises(UserError, match=message):
        learn_codes([write(tmp_path / "a", text)], tmp_path / "codes", merges)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_that_holds_no_codes_is_refused(tmp_path):
    paths = write(tmp_path / "a", "x\n"), write(tmp_path / "b", "x\n")
    with pytest.raises(UserError, match="is not a file of BPE codes"):
        apply_codes(paths, (tmp_path / "c", tmp_path / "d"), write(tmp_path / "codes", "a b c\n"))


def test_an_interrupted_writer_leaves_the_old_files(tmp_path):
    paths = write(tmp_path / "a", "old\n"), tmp_path / "b"
    with pytest.raises(KeyboardInterrupt), atomic_writers(*paths) as streams:
        streams[0].write("new\n")
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old\n"}


def test_an_interrupted_directory_leaves_the_old_one(tmp_path):
    write(tmp_path / "data" / "a", "old")
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "data") as part:
        write(part / "a", "new")
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "a"]
    with atomic_directory(tmp_path / "data") as part:
        write(part / "b", "new")
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "b"]


def test_markup_is_left_out(tmp_path):
    xml = write(
        tmp_path / "a.xml",
        '<title>no</title>\n<seg id="1"> It’s &amp; </seg>\n<seg id="2"></seg>\n',
    )
    assert list(read_segments(xml)) == ["It's &amp;", ""]
    tags = write(
        tmp_path / "train.tags",
        "<url>u</url>\n<keywords>k</keywords>\n<talkid>1</talkid>\n"
        "<title>A title</title>\n<description>So: it is</description>\n Text \n",
    )
    assert list(read_tagged(tags)) == ["A title", "So: it is", "Text"]
    with pytest.raises(UserError, match="holds no <seg id=…> line"):
        list(read_segments(tags))


@pytest.fixture
def quick_preprocess(monkeypatch):
    """Stands in for fairseq-preprocess, which takes seconds to start."""
    monkeypatch.setattr(preprocess, "fairseq_preprocess", stand_in_for_fairseq_preprocess)


def iwslt_archive(path: Path, pairs: int, *, test_sentences: int = 3) -> Path:
    """An archive of the published one's structure and names."""
    files = {}
    for side, language in enumerate(("de", "en")):
        rng = random.Random(1)
        lines = ["<url>http://a</url>", "<talkid>1</talkid>", "<title>Eins</title>"]
        for _ in range(pairs - 1):
            words = rng.choices(list(WORDS.items()), k=rng.randint(2, 9))
            lines.append(" ".join(word[side] for word in words).capitalize() + ".")
        lines.append("zu lang" if side else "eins " * 176)
        files[iwslt14.TRAIN.format(language=language)] = "\n".join(lines) + "\n"
        for name in iwslt14.TEST:
            segments = "".join(
                f'<seg id="{i}"> {name[:12]} {list(WORDS.items())[i][side]}. </seg>\n'
                for i in range(test_sentences)
            )
            files[name.format(language=language)] = f"<doc>\n{segments}</doc>\n"
    with tarfile.open(path, "w:" + path.suffix.removeprefix(".").replace("tgz", "gz")) as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"de-en/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.mark.parametrize("name", ["de-en.tgz", "de-en.tar.xz"])
def test_iwslt14_is_prepared_from_an_archive(tmp_path, quick_preprocess, name):
    archive = iwslt_archive(tmp_path / name, 100)
    given = ["--archive", str(archive), "--out", str(tmp_path / "out"), "--merges", "20"]
    iwslt14.prepare(iwslt14.parse_arguments(given))
    text = {path.name: path.read_text().splitlines() for path in (tmp_path / "out/text").iterdir()}
    assert len(text["all.de"]) == len(text["all.en"]) == 100
    assert text["all.de"][0] == "eins"
    assert text["valid.de"] == text["all.de"][22::23]
    assert len(text["train.en"]) == 96
    assert text["test.en"] == [
        f"{set_name[:12].lower()} {word} ."
        for set_name in iwslt14.TEST
        for word in ("one", "two", "three")
    ]
    assert (tmp_path / "out" / "data-bin").is_dir()


def test_iwslt14_tells_an_archive_without_its_training_half(tmp_path):
    with tarfile.open(tmp_path / "de-en.tgz", "w:gz"):
        pass
    given = ["--archive", str(tmp_path / "de-en.tgz"), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"lacks .*train\.tags\.de-en\.en; is it the right archive"):
        iwslt14.prepare(iwslt14.parse_arguments(given))


@pytest.mark.parametrize("more", [["--test-only"], ["--codes", "codes"]])
def test_iwslt14_wants_test_only_and_codes_together(tmp_path, more):
    with pytest.raises(UserError, match="--test-only and --codes PATH belong together"):
        iwslt14.prepare(iwslt14.parse_arguments(["--out", str(tmp_path / "out"), *more]))


@pytest.mark.slow
def test_iwslt14_equals_the_reference(tmp_path, shared_data):
    reference = shared_data / "iwslt14" / "reference"
    archive = shared_data / "iwslt14" / "de-en-dev-test.tar.xz"
    if not archive.is_file() or not reference.is_dir():
        pytest.skip(f"needs {archive} and {reference}")
    given = [
        "--archive",
        str(archive),
        "--out",
        str(tmp_path),
        "--test-only",
        "--codes",
        str(reference / "bpe.code.xz"),
        "--workers",
        "2",
    ]
    iwslt14.prepare(iwslt14.parse_arguments(given))
    lines = 0
    for kind, folder in (("tok", "text"), ("bpe", "bpe")):
        for language in ("de", "en"):
            expected = list(read_lines(reference / f"test.{kind}.{language}.xz"))
            assert list(read_lines(tmp_path / folder / f"test.{language}")) == expected
            lines += len(expected)
    assert lines == 4 * 6750


def test_iwslt14_treats_the_reference_validation_set_alike(tmp_path, shared_data):
    reference = shared_data / "iwslt14" / "reference"
    if not reference.is_dir():
        pytest.skip(f"needs {reference}")
    texts = reference / "valid.tok.de.xz", reference / "valid.tok.en.xz"
    outputs = tmp_path / "valid.de", tmp_path / "valid.en"
    assert {iwslt14.CLEANING.objection(pair) for pair in read_pairs(*texts)} == {None}
    apply_codes(texts, outputs, reference / "bpe.code.xz")
    for language, output in zip(("de", "en"), outputs, strict=True):
        assert list(read_lines(output)) == list(read_lines(reference / f"valid.bpe.{language}.xz"))
