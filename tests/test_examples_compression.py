"""The compression example: study, packings, search and table, on models of tiny texts."""

import csv
import io
import logging
import re
import shlex
import signal
import subprocess
import sys
from argparse import Namespace
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import ROOT, run_module
from example_texts import write
from fairseq import options as fairseq_options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from lm_runs import eval_lm
from test_compress_study import language_model, stock, translation  # noqa: F401  - fixtures
from tiny_runs import load

from examples.common.errors import UserError
from examples.common.generate_log import read_translations
from examples.common.stages import Stages
from examples.compression import evaluation, packings, report, run
from examples.compression import progress as progress_module
from examples.compression.packings import Model
from examples.compression.progress import Progress
from fairseq_g2lstm.checkpoints import read_checkpoint
from fairseq_g2lstm.compress import Evaluator, Selection, compressed, parse, uniform_plan
from fairseq_g2lstm.compress.__main__ import main as compress
from fairseq_g2lstm.compress.study import p_value

TABLED = ["float32", "lstm-int8", "model-int4", "lstm-int8-hard", "searched"]
UNPACKED = "--model-overrides={'packed_weights': 'unpack'}"


class Made(NamedTuple):
    """A run: its folder, what it was given, what it printed, and fairseq's commands."""

    out: Path
    arguments: list[str]
    said: str
    commands: list[list[str]]

    def rows(self) -> dict[tuple[str, str], dict[str, str]]:
        """packed.csv by model and packing."""
        with open(self.out / "packed.csv", newline="") as stream:
            return {(row["model"], row["packing"]): row for row in csv.DictReader(stream)}

    def again(self, monkeypatch: pytest.MonkeyPatch, *more: str) -> list[list[str]]:
        """Runs it once more; fairseq's commands of that."""
        return make(monkeypatch, self.out, [*self.arguments, *more]).commands


def fairseq_here(command: list[str], log: Path) -> None:
    """fairseq's command in this process, which spares the seconds that a new one takes to start."""
    from fairseq_cli import eval_lm, generate

    output = io.StringIO()
    handler, logger = logging.StreamHandler(output), logging.getLogger(command[2])
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    is_translation = command[2] == "fairseq_cli.generate"
    parsers = fairseq_options.get_eval_lm_parser, fairseq_options.get_generation_parser
    try:
        arguments = fairseq_options.parse_args_and_arch(parsers[is_translation](), command[3:])
        config = convert_namespace_to_omegaconf(arguments)
        generate._main(config, output) if is_translation else eval_lm.main(config)
    finally:
        logger.removeHandler(handler)
    log.write_text(output.getvalue())


def make(monkeypatch: pytest.MonkeyPatch, out: Path, arguments: list[str]) -> Made:
    commands: list[list[str]] = []

    def go(command: list[str], log: Path) -> None:
        commands.append(command)
        fairseq_here(command, log)

    monkeypatch.setattr(evaluation, "_run", go)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    said = io.StringIO()
    with redirect_stdout(said):
        run.main([*arguments, "--out", str(out)])
    return Made(out, arguments, said.getvalue(), commands)


@pytest.fixture(scope="module")
def made(tiny_data, translation, stock, tmp_path_factory) -> Made:  # noqa: F811
    """A run of a model with gumbel gates and a stock one."""
    arguments = [str(translation), str(stock), "--names", "ours", "stock", "--data", str(tiny_data), "--quick"]
    arguments += ["--beam", "2"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        return make(monkeypatch, tmp_path_factory.mktemp("compression"), arguments)


@pytest.fixture(scope="module")
def made_of_text(tiny_text, language_model, tmp_path_factory) -> Made:  # noqa: F811
    """A run of a language model."""
    arguments = [str(language_model), "--names", "lm", "--data", str(tiny_text), "--quick", "--batch-size", "3"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        return make(monkeypatch, tmp_path_factory.mktemp("text"), arguments)


# what is written


@pytest.mark.slow
def test_the_study_has_all_models_beside_each_other(made):
    with open(made.out / "study.csv", newline="") as stream:
        cells = [(row["model"], row["compression"]) for row in csv.DictReader(stream)]
    compressions = ["float32", *run.QUICK_COMPRESSIONS]
    assert cells == [(model, compression) for model in ("ours", "stock") for compression in compressions]
    assert "| ours, BLEU |" in (made.out / "study.md").read_text()
    pytest.importorskip("matplotlib", reason="matplotlib is not installed, which draws the picture")
    assert (made.out / "study.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_every_packing_has_a_row_and_hard_gates_are_of_models_trained_towards_them(made):
    names = [("ours", name) for name in TABLED] + [("stock", name) for name in TABLED if "hard" not in name]
    assert list(made.rows()) == names
    table = (made.out / "packed.md").read_text()
    assert re.findall(r"^\| (\w+) \| (\S+) \|", table, re.MULTILINE)[1:] == names
    assert table in made.said
    mode = read_checkpoint(made.out / "ours" / "lstm-int8-hard.pt")["cfg"]["model"]["gate_eval_mode"]
    assert mode == "hard"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ours", "stock"])
def test_the_float32_row_is_the_given_model(made, tiny_data, translation, stock, name):  # noqa: F811
    own = Evaluator({"ours": translation, "stock": stock}[name], tiny_data, beam=2).score()
    assert read_translations(made.out / name / "float32-kept.txt").hypotheses == own.hypotheses
    row = made.rows()[name, "float32"]
    assert float(row["kept_value"]) == pytest.approx(own.value) and row["kept_p_value"] == row["unpacked_value"] == ""


@pytest.mark.slow
def test_unpacked_ones_translate_as_the_studys_weights_do(made, tiny_data, translation):  # noqa: F811
    evaluator = Evaluator(translation, tiny_data, beam=2)
    plan = uniform_plan(evaluator.weights, parse("int:8"), Selection("all"))
    expected = evaluator.score(compressed(evaluator.weights, plan))
    assert read_translations(made.out / "ours" / "lstm-int8-unpacked.txt").hypotheses == expected.hypotheses
    assert float(made.rows()["ours", "lstm-int8"]["unpacked_value"]) == pytest.approx(expected.value)


@pytest.mark.slow
def test_changes_and_their_significance_are_against_the_float32_model(made):
    own = read_translations(made.out / "ours" / "float32-kept.txt")
    rows = made.rows()
    for packing in TABLED[1:]:
        for how in ("kept", "unpacked"):
            found = read_translations(made.out / "ours" / f"{packing}-{how}.txt").hypotheses
            row = rows["ours", packing]
            change = float(row[f"{how}_value"]) - float(rows["ours", "float32"]["kept_value"])
            assert float(row[f"{how}_change"]) == pytest.approx(change, abs=1e-9)
            assert float(row[f"{how}_p_value"]) == p_value(own.hypotheses, found, own.references)
            assert float(row[f"{how}_speed"]) > 0


@pytest.mark.slow
def test_bytes_are_those_of_files_layers_and_loaded_models(made, translation):  # noqa: F811
    layers = [w for n, w in read_checkpoint(translation)["model"].items() if re.match(r"encoder\.lstm|decoder\.lay", n)]
    floats = sum(4 * w.numel() for w in layers)
    integers = sum(w.numel() + 4 * len(w) if w.dim() == 2 else 4 * w.numel() for w in layers)
    rows = made.rows()
    for (model, packing), row in rows.items():
        path = made.out / model / f"{packing}.pt"
        tensors = {t.data_ptr(): t for t in load(path)[0].state_dict().values()}.values()
        assert int(row["memory_bytes"]) == sum(t.numel() * t.element_size() for t in tensors)
        assert int(row["file_bytes"]) == path.stat().st_size
    assert int(rows["ours", "float32"]["recurrent_bytes"]) == floats
    assert int(rows["ours", "lstm-int8"]["recurrent_bytes"]) == integers
    assert int(rows["ours", "float32"]["file_bytes"]) < translation.stat().st_size / 2, "without the optimiser's state"


@pytest.mark.slow
def test_what_the_search_chose_is_told_for_each_matrix_and_packed(made, translation):  # noqa: F811
    table = (made.out / "packed.md").read_text()
    of_ours = table.partition("stock: BLEU")[0]
    chosen = dict(re.findall(r"^- (\S+): (\S+), [\d,]+ of [\d,]+ bytes", of_ours, re.MULTILINE))
    parts = list(Selection("all").parts(read_checkpoint(translation)["model"]))
    assert [part.name for part in parts] == list(chosen)
    packed = read_checkpoint(made.out / "ours" / "searched.pt")["model"]
    for name, transform in chosen.items():
        stands_as = name if transform == "float32" else f"packed.{name}.q"
        assert {name, f"packed.{name}.q"} & packed.keys() == {stands_as}


@pytest.mark.slow
def test_the_printed_command_packs_the_same(made, tmp_path):
    (printed,) = [line for line in made.said.splitlines() if " pack " in line and "/ours/model-int4.pt" in line]
    words = shlex.split(printed)
    assert words[:3] == ["python", "-m", "fairseq_g2lstm.compress"]
    own = Path(words[5])
    words[5] = str(tmp_path / "packed.pt")
    with redirect_stdout(io.StringIO()):
        assert compress(words[3:]) == 0
    expected, found = (read_checkpoint(path) for path in (own, tmp_path / "packed.pt"))
    assert found["cfg"]["model"] == expected["cfg"]["model"]
    same = [name for name in expected["model"] if name != "packed.meta"]  # that has the settings' words
    assert found["model"].keys() == expected["model"].keys()
    assert all(torch.equal(found["model"][name], expected["model"][name]) for name in same)


@pytest.mark.slow
def test_the_table_says_where_its_numbers_come_from(made):
    table = (made.out / "packed.md").read_text()
    command = ["python", "-m", "examples.compression.run", *made.arguments, "--out", str(made.out)]
    assert f"`{shlex.join(command)}`" in table
    assert "tok:none" in table and "Seeds of the trainings: ours 1, stock 1. test, batches of 128." in table
    assert f"torch {torch.__version__.partition('+')[0]}" in table and "converted to be packed: stock." in table


@pytest.mark.slow
def test_a_language_model_has_perplexities(made_of_text, tiny_text, language_model):  # noqa: F811
    rows = made_of_text.rows()
    assert [packing for _, packing in rows] == TABLED
    own = eval_lm(tiny_text, language_model, "--batch-size", 3)
    assert float(rows["lm", "float32"]["kept_value"]) == pytest.approx(float(own["perplexity"]), abs=0.005)
    assert all(row["kept_p_value"] == row["unpacked_p_value"] == "" for row in rows.values())
    table = (made_of_text.out / "packed.md").read_text()
    assert "perplexity, kept" in table and "tokens/s, kept" in table and "sacrebleu's" not in table
    assert "lm: perplexity" in table.partition("## What the search chose, with 0.2 allowed")[2]


def test_a_stock_language_model_is_converted_and_reads_with_its_state_carried(tiny_text, tmp_path):
    from conftest import train_in_process
    from lm_runs import stock_lm_options

    train_in_process(stock_lm_options(tiny_text, tmp_path / "stock", "--max-update", 3))
    checkpoint = tmp_path / "stock" / "checkpoint_last.pt"
    model = packings.read_model("stock", checkpoint)
    stages = Stages(tmp_path / "out", say=lambda line: None)
    own = packings.to_pack(stages, model)
    packed = packings.pack_model(stages, model, packings.FLOAT32, own, tiny_text)
    settings = evaluation.Settings(tiny_text, True, "test", 5, 2)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(evaluation, "_run", fairseq_here)
        found = evaluation.evaluate(stages, settings, packed.path, packed.path)
    expected = Evaluator(checkpoint, tiny_text, batch_size=2).score()
    assert found.value == pytest.approx(expected.value, abs=0.006)


# commands, and how it goes on


@pytest.mark.slow
def test_each_command_is_fairseqs_own_with_the_plugin_alone(made):
    assert len(made.commands) == 9 + 7  # once kept and, but for float32, once unpacked
    for command in made.commands:
        assert shlex.join(command) in made.said.splitlines()
        options = {word.partition("=")[0] for word in command[4:]}
        allowed = {"--gen-subset", "--batch-size", "--required-batch-size-multiple", "--num-workers"}
        allowed |= {"--user-dir", "--cpu", "--path", "--beam", "--remove-bpe"}
        assert options - {"--model-overrides"} == allowed
    assert sum(UNPACKED in command for command in made.commands) == 7


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["translation", "text"])
def test_fairseqs_command_in_a_process_of_its_own_gives_the_same(made, made_of_text, kind, tmp_path):
    source, name = (made, "ours") if kind == "translation" else (made_of_text, "lm")
    (command,) = [c for c in source.commands if f"/{name}/lstm-int8.pt" in str(c) and UNPACKED not in c]
    log = tmp_path / "log.txt"
    evaluation._run(command, log)
    kept = source.out / name / "lstm-int8-kept.txt"
    if kind == "translation":
        assert read_translations(log).hypotheses == read_translations(kept).hypotheses
        assert evaluation._number(evaluation._SENTENCES_PER_SECOND, log) > 0
    else:
        assert evaluation._number(evaluation._PERPLEXITY, log) == evaluation._number(evaluation._PERPLEXITY, kept)
        assert evaluation._number(evaluation._TOKENS_PER_SECOND, log) > 0


@pytest.mark.slow
def test_called_again_it_does_nothing_that_is_done(made, monkeypatch):
    table = (made.out / "packed.csv").read_text()
    before = {path: path.stat().st_mtime_ns for path in made.out.glob("*/*.*")}
    assert made.again(monkeypatch) == []
    assert {path: path.stat().st_mtime_ns for path in made.out.glob("*/*.*")} == before
    assert (made.out / "packed.csv").read_text() == table


@pytest.mark.slow
def test_what_was_interrupted_is_taken_up_where_it_was(made, monkeypatch):
    rows = made.rows()
    (made.out / "ours" / "model-int4-kept.txt").unlink()
    (made.out / "stock" / "lstm-int8.pt").unlink()
    commands = made.again(monkeypatch)
    # the checkpoint is packed anew, to the same bytes: only the translation that is missing is made
    assert [(c[6].rpartition("/")[2], UNPACKED in c) for c in commands] == [("model-int4.pt", False)]
    again = made.rows()
    for place, row in rows.items():
        assert {k: v for k, v in again[place].items() if "speed" not in k} == {
            k: v for k, v in row.items() if "speed" not in k
        }


@pytest.mark.slow
def test_another_batch_size_is_another_evaluation(made_of_text, monkeypatch, tmp_path):
    data = Path(made_of_text.arguments[4])
    commands: list[list[str]] = []
    own = made_of_text.out / "lm" / "float32.pt"
    copy = tmp_path / "lm" / "float32.pt"
    copy.parent.mkdir()
    copy.write_bytes(own.read_bytes())
    text = "Evaluated 3 tokens in 2.0s (1.50 tokens/s)\nLoss (base 2): 1.7, Perplexity: 3.25\n"
    monkeypatch.setattr(evaluation, "_run", lambda command, log: (commands.append(command), write(log, text)))
    for batch_size in (7, 7, 8):
        settings = evaluation.Settings(data, True, "test", 5, batch_size)
        result = evaluation.evaluate(Stages(tmp_path, say=lambda line: None), settings, copy, copy)
        assert result == evaluation.Result(3.25, 0.0, None, 1.5, evaluation.machine())
    assert ["--batch-size=7" in command for command in commands] == [True, False]


@pytest.mark.slow
def test_progress_counts_every_step_to_the_last_and_tells_the_time_left(made):
    counted = [(int(n), int(of)) for n, of in re.findall(r"^\[(\d+)/(\d+)\] ", made.said, re.MULTILINE)]
    n_steps = 2 * 4 + 16 + 2  # of study, evaluations, searches
    assert counted == [(n, n_steps) for n in range(1, n_steps + 1)]
    pattern = r"^\[10/26\] ours, lstm-int8, kept: BLEU [\d.]+ \([-+][\d.]+, p = [\d.]+\)"
    assert re.search(pattern, made.said, re.MULTILINE)


def test_the_time_left_is_that_of_each_kind_of_step(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress_module, "time", Namespace(monotonic=lambda: now[0]))
    progress = Progress({"study": 4, "evaluation": 3, "search": 2})
    progress.done("study", "found before")
    assert progress.seconds_left() is None
    for seconds in (20, 30):
        now[0] += seconds
        progress.done("study", "a cell")
    # 25 s a cell; twice that an evaluation and ten times a search, until these are measured
    assert progress.seconds_left() == 25 + 3 * 50 + 2 * 250
    now[0] += 7
    progress.begin()  # after something that is no step
    now[0] += 100
    progress.done("evaluation", "a translation")
    # three steps of the study's kind and two more have taken 150 s, four of its units
    assert progress.seconds_left() == 25 + 2 * 100 + 2 * 10 * 150 / 4
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "[1/9] found before" and said[-1] == "[4/9] a translation; 16 min left"


# mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give checkpoints and --data DATA_BIN, or --quickstart"),
        (["a.pt"], "give checkpoints and --data DATA_BIN, or --quickstart"),
        (["a/b.pt", "--data", "d", "--quickstart"], "--quickstart brings its own checkpoints and data"),
        (["--quickstart", "no"], "no has no trained models; train them with python -m examples.quickstart.run --out"),
        (["a/b.pt", "c/b.pt", "--data", "d", "--names", "x"], "--names must be 2 different names, one a checkpoint"),
        (["a/b.pt", "c/b.pt", "--data", "d", "--names", "x", "x"], "--names must be 2 different names"),
        (["a/b.pt", "--data", "d", "--names", "x", "y"], "--names must be 1 different names, one a checkpoint, got"),
        (["a/b.pt", "a/b.pt", "--data", "d"], "a checkpoint is named twice: give each once"),
        (["a/b.pt", "a/c.pt", "--data", "d"], "without slashes and colons, got 'a/b.pt'; give others by --names"),
        (["a/b.pt", "--data", "d", "--names", ".."], "without slashes and colons, got '..'"),
        (["a:/b.pt", "--data", "d", "--names", "x"], "takes a colon for the end of a path; move or link a:/b.pt"),
        (["a/b.pt", "--data", "d", "--out", "x:y"], "--out must have no colon"),
        (["a/b.pt", "--data", "d", "--beam", "0"], "--beam must be >= 1, got 0"),
        (["a/b.pt", "--data", "d", "--batch-size", "-1"], "--batch-size must be >= 1, got -1"),
        (["a/b.pt", "--data", "d", "--allowed", "nan"], "--allowed must be >= 0, got nan"),
    ],
)
def test_a_wrong_option_is_refused_with_a_sentence(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        run.parse_arguments(arguments)


def test_the_quickstarts_finished_models_are_found(tmp_path):
    for arm in ("gumbel", "lstm"):
        write(tmp_path / arm / "finished.json", "{}")
    write(tmp_path / "sigmoid" / "checkpoint_best.pt", "still training")
    options = run.parse_arguments(["--quickstart", str(tmp_path)])
    expected = {arm: tmp_path / arm / "checkpoint_best.pt" for arm in ("gumbel", "lstm")}
    assert options.models == expected and options.data == tmp_path / "data-bin"


@pytest.mark.slow
def test_bad_checkpoints_get_a_sentence(made, translation, language_model, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="no checkpoint at nowhere.pt"):
        run.read_models({"a": Path("nowhere.pt")})
    with pytest.raises(UserError, match="damaged.pt is truncated or no"):
        run.read_models({"a": write(tmp_path / "damaged.pt", "nothing")})
    with pytest.raises(UserError, match="is packed already; give the one that it was made of"):
        run.read_models({"a": made.out / "ours" / "lstm-int8.pt"})
    with pytest.raises(UserError, match="not both: a is a g2lstm, b is a g2lstm_lm"):
        run.read_models({"a": translation, "b": language_model})


@pytest.mark.parametrize(("symbols", "option"), [("ein@@ s", "--remove-bpe"), ("▁ein s", "--remove-bpe=sentencepiece")])
def test_words_are_joined_as_they_were_cut(tmp_path, symbols, option):
    write(tmp_path / "dict.de.txt", "eins 1\n")
    write(tmp_path / "dict.en.txt", "".join(f"{symbol} 1\n" for symbol in symbols.split()))
    model = Model("a", tmp_path / "a.pt", "g2lstm", "gumbel", 1, "en")
    settings = evaluation.Settings(tmp_path, False, "test", 5, 9, run.read_segmentation(tmp_path, model))
    command = settings.command(tmp_path / "a.pt")
    assert [word for word in command if word.startswith("--remove-bpe")] == [option]
    with pytest.raises(UserError, match="has no dictionary of what a translates to; give its data-bin folder"):
        run.read_segmentation(tmp_path, replace(model, target_lang="fr"))
    write(tmp_path / "train.de-en.de.idx", "")
    assert run.read_segmentation(tmp_path, replace(model, target_lang=None)) == settings.segmentation


def test_the_notes_tell_every_machine_that_something_was_measured_on():
    results = [evaluation.Result(1.0, 0.0, None, 1.0, machine) for machine in ("One.", "Another.", "One.", "")]
    rows = [report.Row("a", "int8", None, *results[:2]), report.Row("a", "int4", None, *results[2:])]
    found = report._machines(rows)
    assert found == ["One.", "Another.", "Some by an earlier version, which kept no machine."]


def test_data_that_does_not_fit_gets_a_sentence(translation, tiny_data, tiny_text, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    given = [str(translation), "--names", "a", "--out", str(tmp_path)]
    for folder in (tmp_path / "nowhere", tiny_text):
        with pytest.raises(UserError, match=f"{folder} has no dictionary of what a translates to; give its"):
            run.main([*given, "--data", str(folder)])
    other = tmp_path / "other"
    other.mkdir()
    for path in tiny_data.iterdir():
        few = path.name.startswith("dict.")
        write(other / path.name, "word 1\n") if few else (other / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="does not load with the dictionaries of"):
        run.main([*given, "--data", str(other)])


def test_a_failure_of_fairseq_is_told_with_its_end_and_leaves_no_log(tmp_path):
    log = tmp_path / "kept.txt"
    with pytest.raises(UserError, match=r"json.tool failed with [12]; .*kept.txt.part ends with:\n[\s\S]*nowhere"):
        evaluation._run(["python", "-m", "json.tool", str(tmp_path / "nowhere")], log)
    assert not log.exists()


def test_an_interruption_leaves_nothing_half_written(tmp_path, monkeypatch):
    def terminated(*arguments: object, **options: object) -> None:
        raise SystemExit("terminated")

    monkeypatch.setattr(evaluation.subprocess, "run", terminated)
    with pytest.raises(SystemExit):
        evaluation._run(["python", "-m", "json.tool"], tmp_path / "kept.txt")
    assert not list(tmp_path.iterdir())


def test_a_log_without_numbers_gets_a_sentence(tmp_path):
    log = write(tmp_path / "kept.txt", "Loss\n")
    with pytest.raises(UserError, match="does not tell what fairseq measured; delete it and run again"):
        evaluation._number(evaluation._PERPLEXITY, log)


def test_its_import_leaves_logging_as_it_is():
    program = "import logging, examples.compression.run; print(logging.root.level, logging.root.handlers)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{logging.WARNING} []\n" and "INFO" not in done.stderr


@pytest.mark.slow
def test_the_command_says_what_is_missing_and_nothing_else():
    done: Any = run_module("examples.compression.run", "--quickstart", "nowhere")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: nowhere has no trained models; ")
    assert "Traceback" not in done.stderr
