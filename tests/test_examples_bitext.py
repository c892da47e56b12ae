"""The bitext example: stages, preparation, scripts and comparison."""

import os
import random
from pathlib import Path

import pytest
from conftest import ROOT, run_module
from example_texts import corpus, stand_in_for_fairseq_preprocess, write

from examples.bitext import compare, prepare
from examples.bitext.same_training import identity
from examples.common import files, preprocess
from examples.common.errors import UserError
from examples.common.fairseq_options import settings_of
from examples.common.files import held_folder
from examples.common.generate_log import read_translations
from examples.common.same_training import changed_options
from examples.common.stages import Stages


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    prefixes = {split: folder / split for split in ("train", "valid", "test")}
    given = ["--source-lang", "de", "--target-lang", "en", "--out", str(out), "--merges", "20"]
    for split, prefix in prefixes.items():
        if not (folder / f"{split}.de").exists():
            corpus(folder, split, 60 if split == "train" else 8)
        given += [f"--{split}", str(prefix)]
    return [*given, *more]


def run(given: list[str]) -> None:
    prepare.prepare(prepare.parse_arguments(given))


@pytest.fixture
def quick_preprocess(monkeypatch):
    """Stands in for fairseq-preprocess, which takes seconds to start."""
    monkeypatch.setattr(preprocess, "fairseq_preprocess", stand_in_for_fairseq_preprocess)


class Copying:
    """A stage that copies a file, and counts how often."""

    def __init__(self, folder: Path) -> None:
        self.input, self.output = write(folder / "in", "text"), folder / "out" / "copy"
        self.count = 0
        self.said: list[str] = []

    def work(self) -> None:
        self.count += 1
        write(self.output, self.input.read_text())

    def __call__(self, **options) -> bool:
        stages = Stages(self.output.parent, self.said.append)
        return stages.run(
            "copy", self.work, inputs=[self.input], outputs=[self.output], options=options
        )


def test_a_stage_is_done_once(tmp_path):
    stage = Copying(tmp_path)
    assert [stage(a=(1, 2)), stage(a=(1, 2))] == [True, False]
    assert stage.count == 1
    assert stage.said[-1] == "copy: up to date"


@pytest.mark.parametrize("change", ["input", "output", "no output", "option", "stamp"])
def test_a_stage_is_redone_when_something_changed(tmp_path, change):
    stage = Copying(tmp_path)
    stage(a=1)
    if change == "input":
        write(stage.input, "TEXT")
    elif change == "output":
        write(stage.output, "tex")
    elif change == "no output":
        stage.output.unlink()
    elif change == "stamp":
        write(stage.output.parent / ".stages" / "copy.json", "{")
    assert stage(a=2 if change == "option" else 1)
    assert stage.output.read_text() == stage.input.read_text()
    assert not stage(a=2 if change == "option" else 1)


def test_a_copied_output_directory_is_still_up_to_date(tmp_path):
    stage = Copying(tmp_path)
    stage()
    os.utime(stage.input, (1, 1))
    stage.output.parent.rename(tmp_path / "moved")
    stage.output = tmp_path / "moved" / "copy"
    os.utime(stage.output, (1, 1))
    assert not stage()


def test_a_failed_stage_is_redone(tmp_path):
    stage = Copying(tmp_path)
    stage()
    write(stage.input, "TEXT")
    failing = Copying(tmp_path)
    write(failing.input, "TEXT")
    failing.work = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        failing()
    assert stage()


@pytest.mark.slow
def test_bitext_equals_what_the_commands_give_by_hand(tmp_path):
    given = arguments(tmp_path, tmp_path / "out", "--tokenizer", "none", "--max-ratio", "0")
    run(given)
    bpe = {}
    for split in ("train", "valid", "test"):
        for language in ("de", "en"):
            bpe[split, language] = tmp_path / "out" / "bpe" / f"{split}.{language}"
            text = tmp_path / "out" / "text" / f"{split}.{language}"
            assert text.read_bytes() == (tmp_path / f"{split}.{language}").read_bytes()
    prefixes = [f"--{split}pref={bpe[split, 'de'].with_suffix('')}" for split in ("train", "valid", "test")]
    by_hand = run_module("fairseq_cli.preprocess", "-s=de", "-t=en", *prefixes, "--destdir", tmp_path / "by-hand")
    assert by_hand.returncode == 0, by_hand.stderr
    names = sorted(path.name for path in (tmp_path / "by-hand").iterdir())
    assert len(names) == 15
    for name in set(names) - {"preprocess.log"}:
        ours = tmp_path / "out" / "data-bin" / name
        assert ours.read_bytes() == (tmp_path / "by-hand" / name).read_bytes(), name


def test_a_second_bitext_run_does_nothing(tmp_path, quick_preprocess, capsys):
    given = arguments(tmp_path, tmp_path / "out")
    run(given)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    run(given)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    *stages, _ = capsys.readouterr().out.splitlines()
    assert len(stages) == 8
    assert all(line.endswith(": up to date") for line in stages)


def test_changed_options_redo_only_what_they_change(tmp_path, quick_preprocess, capsys):
    run(arguments(tmp_path, tmp_path / "out"))
    capsys.readouterr()
    run(arguments(tmp_path, tmp_path / "out", "--merges", "5"))
    skipped = [line for line in capsys.readouterr().out.splitlines() if "up to date" in line]
    assert skipped == [f"text-{split}: up to date" for split in ("train", "valid", "test")]
    run(arguments(tmp_path, tmp_path / "out", "--merges", "5", "--joined-dictionary"))
    done = [line for line in capsys.readouterr().out.splitlines() if ": done" in line]
    assert done == ["data-bin: done, stand-in"]


def test_only_training_pairs_are_cleaned(tmp_path, quick_preprocess):
    for split in ("train", "valid", "test"):
        write(tmp_path / f"{split}.de", "a b c\n\neins zwei\neins eins\n")
        write(tmp_path / f"{split}.en", "a\none\none two\none one\n")
    run(arguments(tmp_path, tmp_path / "out", "--max-ratio", "2"))
    text = tmp_path / "out" / "text"
    assert (text / "train.de").read_text() == "eins zwei\neins eins\n"
    assert (text / "test.de").read_text() == "a b c\n\neins zwei\neins eins\n"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--merges", "0"], "--merges must be >= 1, got 0"),
        (["--out", "a:b"], "--out must have neither colon nor comma, at which fairseq cuts names, got a:b"),
        (["--workers", "0"], "--workers must be >= 1, got 0"),
        (["--max-ratio", "0.5"], "max ratio must be >= 1, or 0 for none, got 0.5"),
        (["--max-length", "-3"], "max length must be >= 1, or 0 for none, got -3"),
        (["--target-lang", "de"], "source and target language must differ, got 'de' twice"),
        (["--source-lang", "pt-BR"], "must be of letters, digits and underscores, .* got 'pt-BR': link the texts"),
        (["--source-lang", "fr"], r"no such file: .*train\.fr"),
        (["--valid", "nowhere"], r"no such file: nowhere\.de"),
        (["--out", "/dev/null/out"], "cannot write to /dev/null/out: Not a directory"),
    ],
)
def test_bad_options_of_bitext_are_told(tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        run(arguments(tmp_path, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_one_preparation_at_a_time_writes_to_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    given = arguments(tmp_path, tmp_path / "out")
    with held_folder(tmp_path / "out", "preparation"), pytest.raises(UserError, match="another preparation is running"):
        run(given)


@pytest.mark.slow
def test_a_failing_fairseq_preprocess_leaves_nothing_and_is_quoted(tmp_path):
    with pytest.raises(UserError, match=r"(?s)fairseq-preprocess failed with 1; .*FileNotFound"):
        preprocess.fairseq_preprocess(
            tmp_path / "data-bin", ("de", "en"), {"train": tmp_path / "none"}
        )
    assert list(tmp_path.iterdir()) == []


def test_errors_reach_the_shell_as_one_sentence(tmp_path):
    given = arguments(tmp_path, tmp_path / "out", "--merges", "0")
    done = run_module("examples.bitext.prepare", *given)
    assert (done.returncode, done.stderr) == (1, "error: --merges must be >= 1, got 0\n")


@pytest.mark.parametrize(
    ("options", "change", "told"),
    [
        (["--lr-scheduler", "polynomial_decay", "--total-num-update", "9"], ["--total-num-update", "8"],
         "total_num_update"),
        (["--lr-scheduler", "reduce_lr_on_plateau", "--lr-shrink", "0.5"], ["--lr-shrink", "0.25"], "lr_shrink"),
        (["--lr-scheduler", "cosine"], ["--t-mult", "2"], "t_mult"),
        (["--criterion", "label_smoothed_cross_entropy"], ["--ignore-prefix-size", "1"], "ignore_prefix_size"),
        ([], ["--truncate-source"], "truncate_source"),
        ([], ["--encoder-freeze-embed"], "encoder_freeze_embed"),
        ([], ["--max-epoch", "9", "--max-tokens", "7", "--log-interval", "3"], None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("arch", ["g2lstm", "lstm"])
def test_what_makes_a_training_another_one_is_told(arch, options, change, told):
    given = ["data", "--user-dir", str(ROOT / "fairseq_g2lstm"), "--arch", arch, *options]
    changed = changed_options([settings_of(given)], settings_of([*given, *change]), identity)
    assert [sentence.split()[0] for sentence in changed] == ([] if told is None else [told])


def generate_log(folder: Path, hypotheses: list[str], references: list[str], score: float) -> Path:
    lines = []
    for i in random.Random(2).sample(range(len(references)), len(references)):
        lines += [
            f"S-{i}\tsource",
            f"T-{i}\t{references[i]}",
            f"H-{i}\t-1.0\tno@@ t",
            f"D-{i}\t-2.0\tworse",
            f"D-{i}\t-1.0\t{hypotheses[i]}",
            f"P-{i}\t-1.0",
        ]
    lines.append(f"Generate test with beam=5: BLEU4 = {score}, 1/1/1/1 (BP=1.000)")
    return write(folder / "generate-test.txt", "\n".join(lines) + "\n")


REFERENCES = [f"this is sentence number {i} of the whole test set ." for i in range(200)]
BAD = [line.replace("sentence number", "number") for line in REFERENCES]
NEARLY_BAD = [REFERENCES[0], *BAD[1:]]


def test_translations_are_read_in_the_order_of_the_data(tmp_path):
    log = generate_log(tmp_path, BAD, REFERENCES, 42.2)
    translations = read_translations(log)
    assert translations.hypotheses == BAD
    assert translations.references == REFERENCES
    assert translations.fairseq_score == "42.2, 1/1/1/1 (BP=1.000)"


def test_the_log_command_writes_hypotheses_and_references(tmp_path):
    log = generate_log(tmp_path, BAD, REFERENCES, 42.2)
    done = run_module("examples.common.generate_log", log)
    assert done.stdout == "Generate test with beam=5: BLEU4 = 42.2, 1/1/1/1 (BP=1.000)\n"
    assert (tmp_path / "test.hyp").read_text().splitlines() == BAD
    assert (tmp_path / "test.ref").read_text().splitlines() == REFERENCES


@pytest.mark.parametrize("loss", ["score", "sentence"])
def test_an_unfinished_log_is_refused(tmp_path, loss):
    log = generate_log(tmp_path, BAD, REFERENCES, 42.2)
    lines = log.read_text().splitlines()
    kept = (
        lines[:-1] if loss == "score" else [x for x in lines if not x.startswith(("D-7\t", "T-7"))]
    )
    write(log, "\n".join(kept) + "\n")
    with pytest.raises(
        UserError, match="did not finish" if loss == "score" else "199 translations"
    ):
        read_translations(log)


def compare_folders(tmp_path: Path, *systems: list[str]) -> list[compare.Row]:
    folders = [str(tmp_path / str(i)) for i in range(len(systems))]
    for folder, hypotheses in zip(folders, systems, strict=True):
        generate_log(Path(folder), hypotheses, REFERENCES, 1.0)
    return compare.compare(*compare.load(folders, "test", None))[0]


def test_the_better_system_is_ahead_and_like_ones_cannot_be_told_apart(tmp_path):
    bad, good, same, nearly = compare_folders(tmp_path, BAD, REFERENCES, BAD, NEARLY_BAD)
    assert good.bleu == pytest.approx(100)
    assert good.p_value < 0.05
    assert "1 is ahead of" in good.verdict(bad)
    assert "behind" in compare.Row("x", "", 1, 1, 0, 0.01).verdict(bad)
    assert "cannot be told apart at p < 0.05" in same.verdict(bad)
    assert "cannot be told apart" in nearly.verdict(bad)


def test_compare_prints_a_table_with_the_signature_and_keeps_it(tmp_path):
    compare_folders(tmp_path, BAD, REFERENCES)
    done = run_module("examples.bitext.compare", tmp_path / "0", tmp_path / "1", "--out", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    assert f"| {tmp_path / '1'} | 100.00 | 100.00 ± 0.00 | 0.0010 | 1.0, 1/1/1/1" in done.stdout
    assert "tok:none" in done.stdout
    assert '"sentences": 200' in (tmp_path / "result.json").read_text()


def test_compare_refuses_different_references(tmp_path):
    generate_log(tmp_path / "a", BAD, REFERENCES, 1.0)
    generate_log(tmp_path / "b", BAD, BAD, 1.0)
    folders = [str(tmp_path / name) for name in "ab"]
    with pytest.raises(UserError, match="have different references"):
        compare.load(folders, "test", None)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["a"], "at least one system"),
        (["a", "a"], "each folder may be given once"),
        (["a", "b"], "cannot read .*generate-test.txt: No such file"),
    ],
)
def test_compare_wants_two_folders_with_translations(folders, message):
    with pytest.raises(UserError, match=message):
        compare.load(folders, "test", None)
