"""The ptb example: preparation, training, evaluation, sampling, comparison, and all of it by one command."""

import fcntl
import json
import lzma
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT, run_module
from example_texts import write
from lm_runs import write_text
from test_examples_scripts import check_hydra_config, last, stub

from examples.common.errors import UserError
from examples.common.fairseq_log import setting
from examples.common.same_training import check_same_training
from examples.common.stages import Stages
from examples.ptb import compare, evaluation, prepare, progress, run
from examples.ptb.train_log import read_training
from examples.ptb.trained_runs import identity, read_run

# the last ones win over the recipe small
TINY = ["--decoder-embed-dim", "8", "--decoder-hidden-size", "8", "--decoder-out-embed-dim", "8", "--log-interval", "2"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text of 17 words under Penn Treebank's names, one file plain, one .gz, one .xz."""
    folder = tmp_path_factory.mktemp("corpus")
    write_text(folder, {"train": 300, "valid": 40, "test": 40})
    for split, suffix in (("train", ""), ("valid", ".gz"), ("test", ".xz")):
        text = (folder / f"{split}.txt").read_text()
        write(folder / f"ptb.{split}.txt{suffix}", text.replace("w5 ", "  w5  "))
    return folder


def options_of_prepare(corpus: Path, out: Path, *more: str) -> Namespace:
    return prepare.parse_arguments(["--corpus", str(corpus), "--out", str(out), *more])


def words_of(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()]


def run_command(corpus: Path, out: Path, *more: str) -> list[str]:
    command = [sys.executable, "-m", "examples.ptb.run", "--corpus", str(corpus), "--any-text", "--out", str(out)]
    return [*command, "--seeds", "7", *more, "--", *TINY]


def processes_with(text: str) -> list[str]:
    """Command lines of this machine's processes that hold the text, but for those that have ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


@pytest.fixture(scope="module")
def whole_run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    """A run of two arms whose first training was terminated and taken up again, and what both calls said."""
    out = tmp_path_factory.mktemp("run") / "out"
    endless = run_command(corpus, out, "--arms", "gumbel", "--max-epoch", "100000")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(
        endless, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 600
        while not (out / "small-gumbel-7" / "checkpoint_last.pt").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        first.send_signal(signal.SIGTERM)
        said, _ = first.communicate(timeout=60)
    finally:
        if first.poll() is None:  # it ends its training where it is told to end, and cannot where it is killed
            first.terminate()
            with suppress(subprocess.TimeoutExpired):
                first.wait(timeout=30)
        first.kill()
    epochs = read_training(out / "small-gumbel-7" / "train.log").epochs
    arguments = run_command(corpus, out, "--arms", "gumbel", "stock", "--max-epoch", str(epochs + 2))
    second = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert second.returncode == 0, second.stdout + second.stderr
    yield out, said, second.stdout + second.stderr


# preparation


@pytest.mark.slow
def test_the_prepared_text_has_single_spaces_and_all_words(corpus, whole_run):
    out, _, said = whole_run
    for split in ("train", "valid", "test"):
        assert words_of(out / "text" / f"{split}.txt") == words_of(corpus / f"{split}.txt")
        assert "  " not in (out / "text" / f"{split}.txt").read_text()
    assert "data-bin: up to date" in said


@pytest.mark.slow
def test_the_dictionary_holds_the_texts_types_and_no_others(whole_run):
    out, _, _ = whole_run
    assert len((out / "data-bin" / "dict.txt").read_text().splitlines()) == 17
    for split in ("train", "valid", "test"):
        words = words_of(out / "text" / f"{split}.txt")
        assert evaluation.count_tokens(out / "data-bin", split) == sum(len(line) + 1 for line in words)


@pytest.mark.slow
def test_penn_treebank_has_its_counts(shared_data, tmp_path, capsys):
    if not (shared_data / "ptb").is_dir():
        pytest.skip(f"no Penn Treebank at {shared_data / 'ptb'}")
    data_bin = prepare.prepare(options_of_prepare(shared_data / "ptb", tmp_path))
    assert evaluation.count_tokens(data_bin, "test") == 82_430
    told = capsys.readouterr().out
    assert "train 929,589, valid 73,760, test 82,430 tokens with the ends of sentence, 10,000 types\n" in told
    assert "a dictionary of 10,002 types" in told


def test_a_missing_corpus_gets_a_sentence_that_says_where_it_is_to_be_had(tmp_path):
    with pytest.raises(UserError, match=r"no such file: .*ptb\.train\.txt .*LDC99T42.*'simple-examples'"):
        prepare.prepare(options_of_prepare(tmp_path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_another_text_is_refused_with_its_counts_and_nothing_is_left(corpus, tmp_path):
    with pytest.raises(UserError, match=r"not Penn Treebank .* has [\d,]+ tokens of train in place of 929,589, .*"
                       r"in place of 73,760, .* 18 types of train in place of 10,000; give --any-text"):  # fmt: skip
        prepare.prepare(options_of_prepare(corpus, tmp_path / "out"))
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("precision", [["--float32-matmul-precision", "medium"], ["--float32-matmul-precision=high"]])
def test_precision_of_products_is_refused_where_stock_is_trained_too(precision):
    given = ["--corpus", "corpus", "--out", "out"]
    with pytest.raises(UserError, match="choose --arms without stock, such as --arms gumbel sharpened sigmoid$"):
        run.parse_arguments([*given, "--", *precision])
    with pytest.raises(UserError, match="choose --arms without stock$"):
        run.parse_arguments([*given, "--arms", "stock", "--", *precision])
    assert run.parse_arguments([*given, "--arms", "gumbel", "--", *precision]).train_options == precision


@pytest.mark.slow
def test_options_that_an_arm_does_not_know_are_refused_before_anything_is_trained(corpus, whole_run):
    out = whole_run[0]  # whose data are prepared
    arguments = ["--corpus", str(corpus), "--any-text", "--out", str(out), "--seeds", "9"]
    message = r"^the arm stock cannot be trained with --gate-noise-prob 0\.1: (.|\n)* unrecognized arguments: --gate"
    with pytest.raises(UserError, match=message):
        run.main([*arguments, "--arms", "gumbel", "stock", "--", "--gate-noise-prob", "0.1"])
    assert not list(out.glob("*-9"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", r"ptb\.valid\.txt\.xz holds no words"),
        (b"caf\xe9\n", r"ptb\.valid\.txt\.xz, line 1, is not UTF-8"),
        (None, r"ptb\.valid\.txt\.xz is cut off or damaged"),
    ],
)
def test_a_bad_file_gets_a_sentence(tmp_path, content, message):
    for split in ("train", "test"):
        write(tmp_path / f"ptb.{split}.txt", "a b\n")
    damaged = lzma.compress(b"a b\n")[:-9]
    (tmp_path / "ptb.valid.txt.xz").write_bytes(damaged if content is None else lzma.compress(content))
    with pytest.raises(UserError, match=message):
        prepare.prepare(options_of_prepare(tmp_path, tmp_path / "out", "--any-text"))
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


def test_words_that_training_lacks_are_told(tmp_path):
    texts = {"train": "a b", "valid": "a c d", "test": "b a"}
    raw = {split: write(tmp_path / f"{split}.gz", text) for split, text in texts.items()}
    text = {split: tmp_path / "out" / split for split in raw}
    said = prepare.write_text(raw, text, any_text=True)
    assert said.endswith("train 3, valid 4, test 3 tokens with the ends of sentence, 3 types, 2 types of valid unknown")


def test_the_help_says_where_the_corpus_is_to_be_had():
    done = run_module("examples.ptb.prepare", "--help")
    assert done.returncode == 0 and "LDC99T42" in done.stdout and "simple-examples" in done.stdout


# scripts


def launched(tmp_path: Path, *given: str) -> list[str]:
    """The command line that train.sh ends in, with a stand-in for the interpreter."""
    write(tmp_path / "data" / "dict.txt", "")
    recipe, gates, *more = given
    command = ["bash", "examples/ptb/train.sh", recipe, gates, str(tmp_path / "data"), str(tmp_path / "save"), *more]
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(stub(tmp_path)), "STUB_GPUS": "0"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("recipe", ["small", "medium"])
def test_the_arms_differ_in_the_gates_alone_and_stock_in_what_it_lacks(tmp_path, recipe):
    options = {gates: launched(tmp_path, recipe, gates) for gates in run.ARMS}
    for gates in ("gumbel", "sharpened", "sigmoid"):
        assert [option.replace(gates, "GATES") for option in options[gates]] == [
            option.replace("gumbel", "GATES") for option in options["gumbel"]
        ]
    shared = ["--lr", "--clip-norm", "--force-anneal", "--lr-shrink", "--batch-size", "--tokens-per-sample",
              "--max-epoch", "--seed", "--optimizer", "--update-epoch-batch-itr"]  # fmt: skip
    for option in shared:
        assert last(options["stock"], option) == last(options["gumbel"], option)


@pytest.mark.parametrize("recipe", run.RECIPES)
def test_hydra_has_the_options_of_the_script(tmp_path, recipe):
    options = launched(tmp_path, recipe, "gumbel")
    check_hydra_config(ROOT / "examples" / "ptb" / "config" / f"{recipe}.yaml", options)


def test_one_training_at_a_time_writes_to_a_folder(tmp_path):
    if shutil.which("flock") is None:
        pytest.skip("needs the command flock of util-linux")
    lock = write(tmp_path / "save" / ".lock", "")
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(AssertionError, match=f"another training is running in {tmp_path / 'save'}; end it first"):
            launched(tmp_path, "small", "gumbel")
    assert last(launched(tmp_path, "small", "gumbel"), "--distributed-world-size") == "1"


def test_the_users_options_win(tmp_path):
    options = launched(tmp_path, "awd", "sigmoid", "--lr", "10", "--gate-type", "gumbel")
    assert (last(options, "--lr"), last(options, "--gate-type")) == ("10", "gumbel")


def step(epoch: int, done: int) -> str:
    return f"x | INFO | train_inner | epoch {epoch:03d}:    {done % 10} / 10 loss=5.1, num_updates={done}, lr=1\n"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ("'max_epoch': 4, 'max_update': 0", "epoch 2 of 4, 12 of 40 updates, valid perplexity 17.25, 56 s left"),
        ("'max_epoch': 4, 'max_update': 20", "epoch 2 of 4, 12 of 20 updates, valid perplexity 17.25, 16 s left"),
        ("'max_epoch': 0, 'max_update': 20", "epoch 2, 12 of 20 updates, valid perplexity 17.25, 16 s left"),
        ("'max_epoch': 0, 'max_update': 0", "epoch 2, 12 updates, no end given, valid perplexity 17.25"),
    ],
)
def test_the_time_left_is_told_from_the_log(monkeypatch, limits, expected):
    left = progress.TimeLeft()
    now = iter((100.0, 120.0))
    monkeypatch.setattr(progress, "time", Namespace(monotonic=lambda: next(now)))
    log = f"x | INFO | fairseq_cli.train | {{'_name': None, 'optimization': {{{limits}}}}}\n"
    valid = "x | INFO | valid | epoch 001 | valid on 'valid' subset | loss 4.1 | ppl 17.25 | num_updates 10\n"
    assert [left.read(line) for line in (log, step(1, 2), valid, step(2, 12), "another line\n")] == [
        None, None, None, expected, None,
    ]  # fmt: skip


def test_the_end_is_not_past_where_blocks_of_drawn_lengths_are_more_than_expected():
    left = progress.TimeLeft()
    for line in ["x | INFO | fairseq_cli.train | {'_name': None, 'max_epoch': 2}\n", step(1, 2)]:
        left.read(line)
    assert left.total == 20
    left.read(step(2, 21).replace("1 / 10", "9 / 10"))  # the first epoch had 12
    assert (left.done, left.total) == (21, 22)


def test_the_time_left_of_all_trainings_is_told(monkeypatch):
    left = progress.TimeLeft("[1/3] small", after=2)
    now = iter((0.0, 600.0))
    monkeypatch.setattr(progress, "time", Namespace(monotonic=lambda: next(now)))
    left.read("x | INFO | fairseq_cli.train | {'_name': None, 'max_epoch': 1, 'max_update': 0}\n")
    left.read(step(1, 0))
    text = left.read(step(1, 5))
    assert text == "[1/3] small: epoch 1 of 1, 5 of 10 updates, 10 min left, about 50 min with the 2 trainings after it"


@pytest.mark.slow
def test_the_script_tells_the_time_left_and_goes_on_with_the_same_training_alone(tmp_path, whole_run):
    data, save_dir = whole_run[0] / "data-bin", tmp_path / "save"
    options = ["small", "gumbel", str(data), str(save_dir), *TINY, "--max-epoch", "2"]
    command = ["bash", str(ROOT / "examples" / "ptb" / "train.sh"), *options]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}

    def script(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], capture_output=True, text=True, cwd=tmp_path, env=environment)

    done = script()
    assert done.returncode == 0, done.stderr
    told = r"^epoch 2 of 2, \d+ of \d+ updates, valid perplexity [\d.]+, \d+ s left$"
    assert re.search(told, done.stderr, re.M)
    log = (save_dir / "train.log").read_text()
    assert log == done.stdout

    failed = script("--lr", "fast")
    assert failed.returncode != 0 and "--lr" in failed.stdout
    log = (save_dir / "train.log").read_text()
    other = script("--gate-noise-prob", "0.3", "--seed", "2", "--max-epoch", "3")
    assert other.returncode == 1 and (save_dir / "train.log").read_text() == log
    message = f"error: {save_dir} holds a training with other options (seed 1, gate_noise_prob 0.2); give another"
    assert message in other.stderr
    longer = script("--max-epoch", "3")
    assert longer.returncode == 0 and "(epoch 3 @" in longer.stdout, longer.stderr

    # the rest without the script, which takes seconds to start
    arguments = launched(tmp_path / "stub", "small", "gumbel", *TINY, "--max-epoch", "3")
    arguments = arguments[arguments.index("fairseq_cli.train") + 1 :]
    arguments[0] = str(data)
    check_same_training(save_dir, arguments, identity)
    check_same_training(save_dir, [*arguments, "--lr", "fast"], identity)  # fairseq-train's to refuse
    check_same_training(tmp_path, [*arguments, "--seed", "2"], identity)  # where no training is
    elsewhere = str(shutil.copytree(data, tmp_path / "data-bin"))
    for changed, named in (
        ([elsewhere, *arguments[1:]], f"data {data}"),
        ([*arguments, "--optimizer", "adam"], "optimizer sgd"),
        ([*arguments, "--warmup-updates", "5"], "warmup_updates 0"),
        ([*arguments, "--decoder-embed-dim", "9", "--valid-subset", "test"], "decoder_embed_dim 8, valid_subset valid"),
    ):
        with pytest.raises(UserError, match=f"with other options {re.escape(f'({named})')}"):
            check_same_training(save_dir, changed, identity)


@pytest.mark.parametrize(
    ("script", "given", "message"),
    [
        ("train.sh", ["small", "gumbel", "DIR", "DIR/save"], "holds no dict.txt; give the data-bin folder"),
        ("evaluate.sh", ["DIR", "DIR/save"], "no DIR/save/checkpoint_best.pt; train first"),
        ("sample.sh", ["DIR", "DIR/save"], "no DIR/save/checkpoint_best.pt; train first"),
    ],
)
def test_scripts_tell_what_is_missing(tmp_path, script, given, message):
    command = ["bash", f"examples/ptb/{script}", *(word.replace("DIR", str(tmp_path)) for word in given)]
    environment = {**os.environ, "PYTHON": str(stub(tmp_path)), "STUB_GPUS": "0"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and message.replace("DIR", str(tmp_path)) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["python"]
    usage = subprocess.run(command[:2], capture_output=True, text=True, cwd=ROOT)
    assert usage.returncode == 2 and usage.stderr.startswith("usage:")


def test_the_recipe_awd_has_no_stock_arm(tmp_path):
    with pytest.raises(AssertionError, match="lstm_lm has none of what the recipe awd needs"):
        launched(tmp_path, "awd", "stock")


# the whole


@pytest.mark.slow
def test_a_terminated_run_leaves_no_training_behind_and_goes_on_where_it_was(whole_run):
    out, first, second = whole_run
    assert "terminated; run it again to go on" in first
    deadline = time.monotonic() + 20
    while processes_with(str(out)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not processes_with(str(out))
    assert "small-gumbel-7: goes on from" in second
    log = (out / "small-gumbel-7" / "train.log").read_text()
    assert log.count("No existing checkpoint found") == 1 and log.count("Loaded checkpoint") == 1


@pytest.mark.slow
def test_progress_and_the_time_left_are_told(whole_run):
    _, first, second = whole_run
    pattern = r"\[1/1\] small gumbel, seed 7: epoch \d+ of 100000, [\d,]+ of [\d,]+ updates.*"
    pattern += r", (\d+ (min|s)|[\d.]+ h) left"
    assert re.search(pattern, first), first
    assert re.search(r"\[1/2\] small gumbel, seed 7: .* left, about .* with the 1 training after it", second)
    assert re.search(r"\[2/2\] small stock, seed 7: epoch \d+ of \d+, .* valid perplexity [\d.]+, .* left", second)


@pytest.mark.slow
def test_every_word_of_the_test_set_is_evaluated_in_each_arm(whole_run):
    out, _, _ = whole_run
    tokens = evaluation.count_tokens(out / "data-bin", "test")
    contexts = {}
    for arm, name in (("gumbel", "eval-test"), ("stock", "eval-test"), ("stock", "eval-test-long")):
        result = json.loads((out / f"small-{arm}-7" / f"{name}.json").read_text())
        assert result["tokens"] == tokens and result["seed"] == 7
        # a word has at most about log2(18) = 4.17 bits here, a model that is hardly trained somewhat more
        assert 1 < result["bits"] < 5
        assert result["perplexity"] == pytest.approx(2 ** result["bits"], rel=1e-4)
        contexts[arm, name] = result["context"]
        assert "Evaluated" in (out / f"small-{arm}-7" / f"{name}.log").read_text()
    assert contexts == {
        ("gumbel", "eval-test"): "all of the text before the word",
        ("stock", "eval-test"): "1 to 20 tokens",
        ("stock", "eval-test-long"): "1 to 1000 tokens",
    }


@pytest.mark.slow
def test_the_run_ends_with_a_table_a_picture_and_numbers(whole_run):
    out, _, said = whole_run
    table = (out / "results.md").read_text()
    assert table.strip() in said
    assert re.search(r"^\| gumbel \| 1 \| [\d.]+ \|  \|", table, re.MULTILINE)
    assert "| stock, tested with 1 to 1000 tokens | 1 |" in table
    assert (out / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    (tabled,) = json.loads((out / "results.json").read_text())["tables"]
    assert [row["name"] for row in tabled["rows"]] == ["gumbel", "stock", "stock, tested with 1 to 1000 tokens"]
    evaluated = json.loads((out / "small-gumbel-7" / "eval-test.json").read_text())
    assert tabled["rows"][0]["test"] == [evaluated["perplexity"]]


@pytest.mark.slow
def test_a_finished_run_called_again_does_nothing_but_compare(corpus, whole_run, monkeypatch, capsys):
    out, _, _ = whole_run
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".pt", ".json", ".bin")}
    epochs = read_training(out / "small-stock-7" / "train.log").setting("max_epoch")
    arguments = run_command(corpus, out, "--arms", "gumbel", "stock", "--max-epoch", str(epochs))[3:]
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    run.main(arguments)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".pt", ".json", ".bin")}
    assert after.keys() == before.keys()
    assert {path.name for path in after if after[path] != before[path]} == {"results.json"}
    assert "working" not in capsys.readouterr().out


@pytest.mark.slow
def test_other_options_are_refused_where_a_training_stands(corpus, whole_run, monkeypatch):
    out, _, _ = whole_run
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    arguments = [*run_command(corpus, out, "--arms", "stock")[3:], "--lr", "0.5"]
    with pytest.raises(UserError, match="holds a training with other options or other data; give another --out"):
        run.main(arguments)


def test_a_training_of_another_command_is_refused(tmp_path):
    write(tmp_path / "checkpoint_last.pt", "")
    with pytest.raises(UserError, match="holds a training by another command"):
        run.check_folder(tmp_path, "{}")


# evaluation


@pytest.fixture
def evaluate(whole_run, tmp_path):
    """`evaluate(arm, *options, name=None)` evaluates a copy of an arm's model."""
    out, _, _ = whole_run

    def go(arm: str, *options: str, name: str | None = None) -> dict:
        folder = tmp_path / arm
        folder.mkdir(exist_ok=True)
        (folder / "checkpoint_best.pt").write_bytes((out / f"small-{arm}-7" / "checkpoint_best.pt").read_bytes())
        return evaluation.evaluate(out / "data-bin", folder, ["--cpu", *options], name)

    return go


@pytest.mark.slow
def test_the_length_of_the_blocks_changes_nothing_where_state_is_carried(evaluate):
    whole = evaluate("gumbel")
    short = evaluate("gumbel", "--tokens-per-sample", "9", name="short")
    assert short["bits"] == pytest.approx(whole["bits"], abs=1e-5)


@pytest.mark.slow
def test_progress_of_an_evaluation_is_told_where_there_is_no_terminal(evaluate, tmp_path, capsys):
    evaluate("gumbel", "--tokens-per-sample", "3")
    told = re.findall(r"^evaluated ([\d,]+) of ([\d,]+) batches, \d+ s left$", capsys.readouterr().err, re.M)
    done, total = ([int(number.replace(",", "")) for number in numbers] for numbers in zip(*told, strict=True))
    assert len(told) == 10 and len(set(total)) == 1 and list(done) == sorted(set(done))
    assert done[-1] == total[0] and done[0] <= total[0] / 10 + 1


def test_the_run_shows_it(tmp_path, monkeypatch, capsys):
    def script(command, watch, **environment):
        for line in ("python -m …\n", "evaluated 300 of 1,000 batches, 7 s left\n", "test perplexity 99.00 a word\n"):
            watch(line)
        write(tmp_path / "arm" / "eval-test.json", "{}")

    monkeypatch.setattr(run, "run_script", script)
    for name in ("arm/checkpoint_best.pt", "dict.txt", "test.bin", "test.idx"):
        write(tmp_path / name, "")
    run.evaluate(Stages(tmp_path), tmp_path / "arm", tmp_path, "[1/2] small gumbel, seed 7", "eval-test")
    assert capsys.readouterr().err == "[1/2] small gumbel, seed 7: evaluated 300 of 1,000 batches, 7 s left\n"


@pytest.mark.slow
def test_a_cache_gets_a_result_of_its_own(evaluate, tmp_path, capsys):
    plain = evaluate("gumbel")
    cached = evaluate("gumbel", "--cache-size", "50", "--cache-theta", "0.5", "--cache-lambda", "0.2")
    assert sorted(path.name for path in (tmp_path / "gumbel").glob("*.json")) == [
        "eval-test-cache.json", "eval-test.json",
    ]  # fmt: skip
    assert cached["cache"] == {"size": 50, "theta": 0.5, "lambda": 0.2} and plain["cache"] is None
    assert cached["tokens"] == plain["tokens"] and cached["bits"] != plain["bits"]
    assert "cache {'size': 50, 'theta': 0.5, 'lambda': 0.2}" in capsys.readouterr().out


@pytest.mark.slow
def test_another_evaluation_does_not_overwrite_the_result(evaluate):
    evaluate("gumbel")
    evaluate("gumbel")  # the same again is welcome
    with pytest.raises(UserError, match=r"eval-test\.json is of another evaluation, .*RESULT_NAME=NAME"):
        evaluate("gumbel", "--batch-size", "3")
    rows = evaluate("gumbel", "--batch-size", "3", name="rows")
    assert rows["context"] == "all of the text before the word in its row, of 3"


@pytest.mark.slow
def test_a_context_window_gives_the_stock_model_more(evaluate):
    window = evaluate("stock", "--tokens-per-sample", "50", "--context-window", "40", name="window")
    assert window["context"] == "41 to 50 tokens" and window["tokens"] == evaluate("stock")["tokens"]


@pytest.mark.slow
def test_tokens_that_were_left_out_are_told(evaluate, tmp_path):
    with pytest.raises(UserError, match=r"evaluated \d+ of test's \d+ tokens, .*--model-overrides .*positions': 60"):
        evaluate("stock", "--tokens-per-sample", "60")
    assert not list((tmp_path / "stock").glob("*.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cache-size", "5", "--cache-lambda", "2"], "fairseq-eval-lm failed: --cache-lambda must be >= 0 and < 1"),
        (["--cache-theta=0.3"], "--cache-theta and --cache-lambda have no effect without a cache: give a --cache-size"),
        (["--gen-subset", "other"], r"holds no other\.bin and other\.idx"),
        (["--path=other.pt"], r"checkpoint_best\.pt, not another --path: copy the other one"),
    ],
)
def test_a_bad_evaluation_gets_a_sentence(evaluate, options, message):
    with pytest.raises(UserError, match=message):
        evaluate("gumbel", *options)


def test_a_damaged_checkpoint_gets_a_sentence(tmp_path):
    write(tmp_path / "checkpoint_best.pt", "nothing")
    with pytest.raises(UserError, match=r"checkpoint_best\.pt is truncated or no"):
        evaluation.evaluate(tmp_path, tmp_path, [])


# sampling


@pytest.mark.slow
def test_sentences_are_sampled_that_begin_as_they_are_told_to(whole_run, tmp_path):
    out, _, _ = whole_run
    (tmp_path / "checkpoint_best.pt").write_bytes((out / "small-gumbel-7" / "checkpoint_best.pt").read_bytes())
    command = ["bash", "examples/ptb/sample.sh", str(out / "data-bin"), str(tmp_path), "--seed", "3"]
    done = subprocess.run(
        [*command, "--beam", "2", "--nbest", "2"], input="w1 w4\n\n", capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and lines[0] != lines[1]
    assert all(line.startswith("w1 w4") for line in lines[:2])
    assert set(" ".join(lines).split()) <= {f"w{word}" for word in range(17)} | {"<unk>"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "options", "message"),
    [
        ("stock", [], "ValueError: the task g2lstm_language_modeling carries hidden state, which LSTMLanguage"),
        ("gumbel", ["--beam", "many"], "interactive.py: error: argument --beam: invalid int value: 'many'"),
    ],
)
def test_what_cannot_be_sampled_gets_a_sentence(whole_run, tmp_path, arm, options, message):
    out, _, _ = whole_run
    (tmp_path / "checkpoint_best.pt").write_bytes((out / f"small-{arm}-7" / "checkpoint_best.pt").read_bytes())
    command = ["bash", "examples/ptb/sample.sh", str(out / "data-bin"), str(tmp_path), "--seed", "3", *options]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, input="w1\n", capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: fairseq-interactive failed: {message}")
    assert done.stderr.splitlines()[-1] == f"All it said is in {tmp_path / 'sample.log'}"


def test_each_call_samples_with_a_seed_that_it_says_unless_one_is_given(tmp_path):
    write(tmp_path / "checkpoint_best.pt", "")
    environment = {**os.environ, "PYTHON": str(stub(tmp_path)), "STUB_GPUS": "0"}

    def sampled(*more: str) -> tuple[str, list[str]]:
        command = ["bash", "examples/ptb/sample.sh", "data", str(tmp_path), *more]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stderr, (tmp_path / "sample.log").read_text().splitlines()

    said, options = sampled()
    assert said == f"--seed {last(options, '--seed')}\n"
    assert sampled()[0] != said
    for given in (["--seed", "3"], ["--seed=3"]):
        said, options = sampled(*given)
        assert said == "" and options[-len(given) :] == given and sum("--seed" in option for option in options) == 1


# logs


HEAD = "2026-01-01 00:00:00 | INFO |"


def log_text(
    sessions: list[list[float]], *, gates: str = "gumbel", seed: int = 1, done: bool = True, lr: float = 1.0,
    max_epoch: int = 4, more: str = "",
) -> str:  # fmt: skip
    """fairseq-train's log of sessions of epochs of 10 updates, for each epoch the validation perplexity."""
    gate = "" if gates == "stock" else f"'gate_type': {gates}, 'gate_temperature': 0.9, "
    model, task = ("lstm_lm", "language_modeling") if gates == "stock" else ("g2lstm_lm", "g2lstm_language_modeling")
    lines, epoch = [], 0
    for perplexities in sessions:
        lines.append(
            f"{HEAD} fairseq_cli.train | {{'_name': None, 'common': {{'seed': {seed}}}, 'optimization': {{'max_epoch': "
            f"{max_epoch}, 'lr': [{lr}], 'max_update': 0}}, 'dataset': {{'batch_size': 20}}, 'model': {{'_name': "
            f"'{model}', {gate}{more}'dropout': 0.0}}, 'task': {{'_name': '{task}', 'tokens_per_sample': 20}}, "
            "'optimizer': Namespace(no_progress_bar=False, optimizer='sgd', weight_decay=0.0)}"
        )
        lines.append(f"{HEAD} fairseq_cli.train | num. shared model params: 1,560 (num. trained: 1,560)")
        start = f"Loaded checkpoint x/last.pt (epoch {epoch + 1} @ {10 * epoch} updates)"
        lines.append(f"{HEAD} fairseq.trainer | {start if epoch else 'No existing checkpoint found x/last.pt'}")
        for perplexity in perplexities:
            epoch += 1
            loss = 20 * math.log2(perplexity)
            lines.append(
                f"{HEAD} valid | epoch {epoch:03} | valid on 'valid' subset | loss {loss:.3f} | nll_loss 1 | ppl "
                f"{perplexity} | wps 1 | wpb 1 | bsz 1 | num_updates {10 * epoch}"
            )
            ppl, wps = 90 - epoch, 1000 + epoch
            lines.append(f"{HEAD} train | epoch {epoch:03} | loss 1 | ppl {ppl} | wps {wps} | ups 1 | wpb 1")
        epoch = 2  # where a later session takes up
    if done:
        lines.append(f"{HEAD} fairseq_cli.train | done training in 0.2 seconds")
    return "\n".join(lines) + "\n"


def test_a_later_session_takes_the_place_of_what_it_did_again(tmp_path):
    log = write(tmp_path / "train.log", log_text([[50, 40, 10], [30, 20]]))
    training = read_training(log)
    assert training.by_epoch() == {1: 50, 2: 40, 3: 30, 4: 20}
    assert (training.epochs, training.best.updates, training.finished) == (4, 40, True)
    write(log, log.read_text() + log_text([[60]], done=False))
    assert read_training(log).by_epoch() == {1: 60} and not read_training(log).finished


def test_options_are_read_from_both_of_fairseqs_ways_of_writing_them(tmp_path):
    settings = read_training(write(tmp_path / "train.log", log_text([[5]]))).settings
    found = {name: setting(settings, name) for name in ("lr", "gate_type", "task", "weight_decay", "clip_norm")}
    assert found == {
        "lr": [1.0], "gate_type": "gumbel", "task": "g2lstm_language_modeling", "weight_decay": 0.0, "clip_norm": None,
    }  # fmt: skip
    named = "{'_name': None, 'save_dir': 'runs/gate_type=sigmoid', 'model': Namespace(gate_type='gumbel', lr=[2.0])}"
    assert (setting(named, "gate_type"), setting(named, "lr")) == ("gumbel", [2.0])
    assert setting(named, "save_dir") == "runs/gate_type=sigmoid"


@pytest.mark.parametrize("text", [None, "nothing of fairseq's\n"])
def test_a_log_of_no_training_gets_a_sentence(tmp_path, text):
    if text is not None:
        write(tmp_path / "train.log", text)
    with pytest.raises(UserError, match="train with examples/ptb/train.sh" if text is None else "no training yet"):
        read_training(tmp_path / "train.log")


# comparison


def make_run(folder: Path, gates: str, seed: int, test: float | None, **options) -> str:
    valid = options.pop("valid", [50, 40, 30, 20])
    context = options.pop("context", "all of the text before the word")
    result = options.pop("result", {})
    place = folder / f"{gates}-{seed}"
    write(place / "train.log", log_text([valid], gates=gates, seed=seed, **options))
    if test is not None:
        result = {"perplexity": test, "tokens": 82430, "updates": 10 * len(valid), "context": context, **result}
        write(place / "eval-test.json", json.dumps(result))
    return str(place)


def test_arms_are_compared_over_the_seeds_that_they_share(tmp_path, monkeypatch, capsys):
    tests = {"sigmoid": [100, 102, 104], "gumbel": [99, 100, 103], "stock": [110, 112]}
    folders = [
        make_run(tmp_path, gates, seed, test)
        for gates, values in tests.items()
        for seed, test in zip((1, 1_000_001, 2_000_001), values, strict=False)
    ]
    table = compare.report(folders, tmp_path / "out")
    (tabled,) = json.loads((tmp_path / "out" / "results.json").read_text())["tables"]
    rows = {row["name"]: row for row in tabled["rows"]}
    assert list(rows) == ["gumbel", "sigmoid", "stock"]
    # differences -1, -2, -1: mean -4/3, standard deviation 1/sqrt(3), so a standard error of 1/3
    assert rows["gumbel"]["difference"] == pytest.approx(-4 / 3)
    assert rows["gumbel"]["error"] == pytest.approx(1 / 3)
    assert rows["sigmoid"]["deviation"] == pytest.approx(2) and rows["sigmoid"]["difference"] is None
    assert (rows["stock"]["difference"], rows["stock"]["error"]) == (10, 0)
    # of the evaluated set, and of the last of four epochs
    assert (rows["gumbel"]["tokens"], rows["gumbel"]["trained"]) == ([82430] * 3, [86.0] * 3)
    assert "| gumbel | 3 | 100.67 | 2.08 | 99.00, 100.00, 103.00 | 20.00 | 4 | 1,002 | -1.33 ± 0.33 |" in table
    assert "Seeds: 1, 1000001, 2000001.\nOf stock only: 1, 1000001." in table
    assert (tmp_path / "out" / "perplexity.png").stat().st_size > 1000
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert compare.report(folders, tmp_path / "again") == table
    assert "no picture: matplotlib is not installed" in capsys.readouterr().err


def test_what_is_missing_or_unfinished_is_said(tmp_path):
    folders = [
        make_run(tmp_path, "sigmoid", 1, 100.0),
        make_run(tmp_path, "gumbel", 1, 99.0, valid=[50, 40, 30], done=False),
        make_run(tmp_path, "sharpened", 1, None),
        str(tmp_path / "nowhere"),
    ]
    table = compare.report(folders, tmp_path / "out")
    # a training that is not finished is held against nothing
    assert "| gumbel, unfinished, 3 of 4 epochs | 1 | 99.00 |  | 99.00 | 30.00 | 3 | 1,002 |  |" in table
    assert f"{folders[2]} is not compared: it has no eval-test.json; finished after 4 of 4 epochs" in table
    assert f"there is no folder {folders[3]}." in table


def test_a_result_of_an_earlier_checkpoint_is_not_taken(tmp_path):
    folder = make_run(tmp_path, "gumbel", 1, 99.0)
    text = (Path(folder) / "train.log").read_text()
    write(Path(folder) / "train.log", text + log_text([[50, 40, 30, 20, 10]], max_epoch=5))
    with pytest.raises(UserError, match="is of the model after 40 updates, .* the best one is that after 50; evaluate"):
        compare.report([folder], tmp_path)


def test_recipes_and_caches_get_tables_of_their_own_and_odd_arms_names(tmp_path):
    cache = {"size": 500, "theta": 0.3, "lambda": 0.1}
    folders = [
        make_run(tmp_path / "a", "gumbel", 1, 99.0),
        make_run(tmp_path / "b", "gumbel", 1, 98.0, lr=2.0),
        make_run(tmp_path / "c", "gumbel", 1, 97.0, result={"cache": cache}),
        make_run(tmp_path / "d", "gumbel", 1, 96.0, more="'gate_noise_prob': 0.5, "),
    ]
    compare.report(folders, tmp_path)
    tables = json.loads((tmp_path / "results.json").read_text())["tables"]
    assert [[row["name"] for row in table["rows"]] for table in tables] == [
        ["gumbel", "gumbel, gate noise prob 0.5"], ["gumbel"], ["gumbel"],
    ]  # fmt: skip
    assert "sgd at 2.0" in tables[1]["title"] and tables[0]["title"].endswith("epochs")
    assert tables[2]["title"].endswith("cache of size 500, theta 0.3, lambda 0.1")


@pytest.mark.parametrize(
    "more",
    [
        "'decoder_dropout_type': 'locked', ",
        "'init_range': 0.05, ",
        "'lstm_init_range': 0.05, ",
        "'momentum': 0.9, ",
        "'fp16': True, ",
        "'bf16': True, ",
        "'amp': True, ",
        "'float32_matmul_precision': 'medium', ",
        "'lr_scheduler': {'_name': 'cosine'}, ",
        "'max_tokens': 400, ",
    ],
)
def test_trainings_that_differ_are_no_seeds_of_one_arm(tmp_path, more):
    folders = [make_run(tmp_path, "gumbel", 1, 99.0), make_run(tmp_path, "gumbel", 2, 98.0, more=more)]
    tables = tables_of(folders)
    assert [row.seeds for table in tables for row in table.rows] == [[1], [2]]
    assert tables[0].title != tables[1].title


@pytest.mark.parametrize("result", [{"subset": "valid"}, {"model_overrides": "{'gate_eval_mode': 'hard'}"}])
def test_evaluations_that_differ_are_no_seeds_of_one_arm(tmp_path, result):
    folders = [make_run(tmp_path, "gumbel", 1, 99.0), make_run(tmp_path, "gumbel", 2, 98.0, result=result)]
    tables = tables_of(folders)
    assert [row.seeds for table in tables for row in table.rows] == [[1], [2]]
    assert f"| {result.get('subset', 'test')} perplexity |" in compare.markdown(tables[1:], [])
    assert tables[1].title.endswith("evaluated with gate_eval_mode hard") == ("model_overrides" in result)


def test_a_recorded_default_and_a_stock_model_stand_in_the_same_table(tmp_path):
    said = "'init_range': 0.1, 'lstm_init_range': 0.1, 'decoder_dropout_type': 'plain', 'fp16': False, "
    longer = {"model_overrides": "{'max_target_positions': 1000}"}
    folders = [
        make_run(tmp_path, "stock", 1, 99.0, result=longer),
        make_run(tmp_path, "gumbel", 1, 98.0),
        make_run(tmp_path, "gumbel", 2, 97.0, more=said),
        make_run(tmp_path / "other", "gumbel", 1, 96.0, more="'init_range': 0.05, "),
    ]
    assert [{row.name: row.seeds for row in table.rows} for table in tables_of(folders)] == [
        {"gumbel": [1, 2], "stock": [1]}, {"gumbel": [1]},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("gates", "more", "name"),
    [
        ("gumbel", "'gate_eval_mode': 'auto', 'gate_noise_sharing': 'step', ", "gumbel"),
        ("gumbel", "'gate_eval_mode': 'tempered', ", "gumbel, gate eval mode tempered"),
        ("sigmoid", "'gate_eval_mode': 'hard', 'gate_noise_prob': 0.5, ", "sigmoid, gate eval mode hard"),
        ("sharpened", "'gate_temperature_end': 0.5, 'gate_noise_end': 0.1, ", "sharpened, gate temperature end 0.5"),
    ],
)
def test_an_arm_is_named_by_what_is_unusual_about_its_gates(tmp_path, gates, more, name):
    more = f"{more}'gate_noise_end': None, "
    assert read_run(make_run(tmp_path, gates, 1, 99.0, more=more), "eval-test").arm == name


def test_a_training_that_went_on_with_other_options_is_not_compared(tmp_path):
    folder = make_run(tmp_path, "gumbel", 1, 99.0)
    log = Path(folder) / "train.log"
    later = log.read_text()
    begins, goes_on = "No existing checkpoint found x/last.pt", "Loaded checkpoint x/last.pt (epoch 1 @ 0 updates)"
    went_on = later.replace(begins, goes_on)
    assert went_on != later
    same, other = (log_text([[150]], gates=gates, max_epoch=1) for gates in ("gumbel", "sigmoid"))
    log.write_text(other + went_on)
    with pytest.raises(UserError, match=r"begun with other options \(gate_type sigmoid\); train it anew"):
        read_run(folder, "eval-test")
    failed = other.replace(begins, "no checkpoint was read").split("| valid |")[0] + "\n"
    for begun in (same + went_on, other + later, same + failed + went_on):
        log.write_text(begun)
        assert read_run(folder, "eval-test").arm == "gumbel"


@pytest.mark.filterwarnings("error:constrained_layout not applied")
def test_a_picture_has_room_for_long_names(tmp_path):
    more = "'gate_noise_schedule': 'linear', 'gate_noise_start': 0.2, 'gate_noise_end': 0.0, 'gate_eval_mode': 'hard', "
    more += "'gate_noise_sharing': 'sequence', 'gate_noise_updates': 26560, "
    compare.report([make_run(tmp_path, "gumbel", 1, 99.0, done=False, more=more)], tmp_path)


def tables_of(folders: list[str]) -> list[compare.Table]:
    return compare.compare([read_run(folder, "eval-test") for folder in folders])


def test_folders_that_cannot_stand_side_by_side_are_refused(tmp_path):
    one, other = make_run(tmp_path / "a", "stock", 1, 99.0), make_run(tmp_path / "b", "stock", 1, 98.0)
    with pytest.raises(UserError, match="each folder may be given once"):
        compare.report([one, one], tmp_path)
    with pytest.raises(UserError, match=f"{one} and {other} are the same training: give one of them"):
        compare.report([one, other], tmp_path)
    third = make_run(tmp_path / "c", "stock", 2, 98.0, context="1 to 20 tokens")
    with pytest.raises(UserError, match="were not evaluated alike"):
        compare.report([one, third], tmp_path)
    with pytest.raises(UserError, match="nothing to compare: there is no folder"):
        compare.report([str(tmp_path / "nowhere")], tmp_path)


# the command's options


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seeds", "1", "2"], "--seeds must be at least 1,000,000 apart, .* got 1 and 2"),
        (["--seeds", "-5"], "--seeds must be >= 0, got -5"),
        (["--arms", "gumbel", "gumbel"], "each once, got gumbel gumbel"),
        (["--recipe", "awd", "--arms", "stock"], "takes gumbel, sharpened, sigmoid with the recipe awd, .* got stock"),
        (["--max-epoch", "0"], "--max-epoch must be >= 1, got 0"),
    ],
)
def test_a_bad_option_gets_a_sentence(more, message):
    with pytest.raises(UserError, match=message):
        run.parse_arguments(["--corpus", "x", "--out", "y", *more])


def test_what_follows_two_dashes_goes_to_every_training():
    options = run.parse_arguments(["--corpus", "x", "--out", "y", "--recipe", "awd", "--", "--lr", "3"])
    assert options.train_options == ["--lr", "3"]
    assert options.arms == ["gumbel", "sharpened", "sigmoid"] and options.seeds == [1, 1_000_001, 2_000_001]
