"""The task g2lstm_language_modeling under fairseq's commands: carried state, resuming, averaging, evaluation."""

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PLUGIN, ROOT, run_module, train_in_process
from fairseq.data import Dictionary, data_utils
from fairseq.optim.sgd import SGD
from fairseq.sequence_scorer import SequenceScorer
from lm_runs import RECIPE, eval_lm, preprocess, stock_lm_options, train_lm, write_text
from tiny_runs import assert_identical

from fairseq_g2lstm.checkpoints import State, read_checkpoint
from fairseq_g2lstm.loading import load_model
from fairseq_g2lstm.models.carried import CarriedState, TextState
from fairseq_g2lstm.models.language_model import G2LSTMLanguageModel
from fairseq_g2lstm.text_rows import drawn_lengths

EIGHT_ROWS = [*RECIPE, "--batch-size", 8]
LAST = 150


@pytest.fixture(scope="module")
def trained(tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a model that has learnt to read the tiny text, and to use what it has read."""
    folder = tmp_path_factory.mktemp("trained")
    learning = ["--optimizer", "adam", "--lr", 0.02, "--dropout", 0, "--max-epoch", 12]
    return train_lm(tiny_text, folder, *learning) / "checkpoint_last.pt"


def test_the_trained_model_knows_more_than_how_often_words_are(tiny_text: Path, trained: Path):
    # the words' frequencies alone give 4.1 bits, knowing the rule that makes them 1 bit and the lines' ends
    assert eval_lm(tiny_text, trained)["loss"] < 3.0


@pytest.fixture(scope="module")
def uninterrupted(tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of the training that nobody stops."""
    options = [*EIGHT_ROWS, "--save-interval-updates", 40, "--max-update", LAST]
    return train_lm(tiny_text, tmp_path_factory.mktemp("uninterrupted"), *options)


def position(state: State) -> tuple[int, int, int]:
    """Epoch, blocks read of it, and updates done."""
    iterator = state["extra_state"]["train_iterator"]
    return iterator["epoch"], iterator["iterations_in_epoch"], state["optimizer_history"][-1]["num_updates"]


def kept(state: State) -> dict[str, Any]:
    return state["extra_state"]["G2LSTMLanguageModelingTask"]


def assert_same_training(found: State, expected: State) -> None:
    assert position(found) == position(expected)
    for part in ("model", "last_optimizer_state"):
        assert_identical(found[part], expected[part], part)
    assert_identical(kept(found), kept(expected))


def averages(state: State) -> bool:
    return state["last_optimizer_state"]["averaging"]


def test_the_recipe_of_these_tests_averages_in_its_second_half(uninterrupted: Path):
    found = {int(p.stem.split("_")[-1]): averages(read_checkpoint(p)) for p in uninterrupted.glob("checkpoint_*_*.pt")}
    assert not found[40] and found[120], found


# within epoch 1, at an epoch's end, and within an epoch on either side of the averaging's start
@pytest.mark.parametrize("stop", [["--max-update", 7], ["--max-epoch", 2], ["--max-update", 40], ["--max-update", 120]])
def test_a_stopped_training_goes_on_as_if_never_stopped(
    tiny_text: Path, tmp_path: Path, uninterrupted: Path, stop: list[object]
):
    folder = train_lm(tiny_text, tmp_path, *EIGHT_ROWS, "--max-update", LAST, *stop)
    stopped = read_checkpoint(folder / "checkpoint_last.pt")
    assert position(stopped)[2] < LAST
    assert (position(stopped)[1] > 0) == (stop[0] == "--max-update")
    train_lm(tiny_text, tmp_path, *EIGHT_ROWS, "--max-update", LAST)
    assert_same_training(
        read_checkpoint(folder / "checkpoint_last.pt"), read_checkpoint(uninterrupted / "checkpoint_last.pt")
    )


@pytest.mark.parametrize(
    "options",
    [
        ["--update-freq", 3],
        ["--update-freq", 3, "--skip-remainder-batch"],
        ["--num-workers", 2],
        ["--valid-subset", "valid,train", "--validate-interval-updates", 5],
    ],
)
def test_other_ways_of_training_go_on_too(tiny_text: Path, tmp_path: Path, options: list[object]):
    options = [*EIGHT_ROWS, *options, "--max-update", 40]
    whole = train_lm(tiny_text, tmp_path / "whole", *options)
    for max_update in (11, 40):
        stopped = train_lm(tiny_text, tmp_path / "stopped", *options, "--max-update", max_update)
    assert_same_training(*(read_checkpoint(folder / "checkpoint_last.pt") for folder in (stopped, whole)))


def test_several_folders_of_data_take_turns_and_go_on_too(tiny_text: Path, tmp_path: Path):
    write_text(tmp_path, {"train": 100, "valid": 20, "test": 20}, seed=1)
    folders = [tiny_text, preprocess(tmp_path, "--srcdict", tiny_text / "dict.txt")]
    both = ":".join(map(str, folders))
    whole = train_lm(both, tmp_path / "whole", *EIGHT_ROWS, "--max-update", 40)
    n_steps = [math.ceil(len(tokens_of(folder / "train")) / 8) for folder in folders]
    n_blocks = [len(drawn_lengths(steps, 12, 1, epoch)) for epoch, steps in enumerate(n_steps, 1)]
    assert n_blocks[1] < n_blocks[0] < 31 < sum(n_blocks) < 40
    assert position(read_checkpoint(whole / "checkpoint_last.pt")) == (3, 40 - sum(n_blocks), 40)
    for max_update in (31, 40):
        stopped = train_lm(both, tmp_path / "stopped", *EIGHT_ROWS, "--max-update", max_update)
    assert_same_training(*(read_checkpoint(folder / "checkpoint_last.pt") for folder in (stopped, whole)))


@pytest.mark.parametrize("update_freq", [1, 3])
def test_a_training_survives_a_block_without_memory(tiny_text: Path, tmp_path: Path, monkeypatch, update_freq: int):
    keep = CarriedState.keep
    failed = []

    def without_memory(self, block: int, state: TextState) -> None:
        if block - 1 in (0, 2 * update_freq):
            failed.append(block - 1)
            raise RuntimeError("out of memory")
        keep(self, block, state)

    monkeypatch.setattr(CarriedState, "keep", without_memory)
    options = ["--max-epoch", 2, "--update-freq", update_freq, "--disable-validation"]
    folder = train_lm(tiny_text, tmp_path, *options)
    assert failed == [0, 2 * update_freq] * 2
    n_blocks = math.ceil(math.ceil(len(tokens_of(tiny_text / "train")) / 4) / 10)
    assert position(read_checkpoint(folder / "checkpoint_last.pt"))[2] == 2 * (math.ceil(n_blocks / update_freq) - 2)


def test_only_the_first_validation_set_at_an_epochs_end_counts_for_averaging(tiny_text: Path, tmp_path: Path):
    options = [*EIGHT_ROWS, "--valid-subset", "valid,test,train", "--validate-interval-updates", 5, "--max-epoch", 2]
    alone = train_lm(tiny_text, tmp_path / "alone", *EIGHT_ROWS, "--max-epoch", 2)
    several = train_lm(tiny_text, tmp_path / "several", *options)
    losses = [kept(read_checkpoint(f / "checkpoint_last.pt"))["trigger"]["losses"] for f in (alone, several)]
    assert losses[0] == losses[1] and len(losses[0]) == 2


def test_a_stop_between_two_validations_of_the_interval_does_not_count_for_averaging(tiny_text: Path, tmp_path: Path):
    options = [*EIGHT_ROWS, "--validate-interval", 2, "--max-epoch", 3]
    whole = train_lm(tiny_text, tmp_path / "whole", *options)
    n_blocks = len(drawn_lengths(math.ceil(len(tokens_of(tiny_text / "train")) / 8), 12, 1, 1))
    for stop in (["--max-update", n_blocks], []):
        stopped = train_lm(tiny_text, tmp_path / "stopped", *options, *stop)
        assert position(read_checkpoint(stopped / "checkpoint_last.pt"))[0] == (2 if stop else 4)
    found, expected = (read_checkpoint(folder / "checkpoint_last.pt") for folder in (stopped, whole))
    assert_same_training(found, expected)
    assert len(kept(expected)["trigger"]["losses"]) == 1


def test_the_blocks_drawn_lengths_change_with_the_epoch(tiny_text: Path, tmp_path: Path):
    state = read_checkpoint(train_lm(tiny_text, tmp_path, *EIGHT_ROWS, "--max-epoch", 2) / "checkpoint_last.pt")
    n_steps = math.ceil(len(tokens_of(tiny_text / "train")) / 8)
    epochs = [drawn_lengths(n_steps, 12, 1, epoch) for epoch in (1, 2)]
    assert epochs[0] != epochs[1] and position(state)[2] == sum(map(len, epochs))


def test_validation_leaves_training_as_it_was(tiny_text: Path, tmp_path: Path):
    often = train_lm(tiny_text, tmp_path / "often", "--max-update", 30, "--validate-interval-updates", 3)
    never = train_lm(tiny_text, tmp_path / "never", "--max-update", 30, "--disable-validation")
    one, other = (read_checkpoint(folder / "checkpoint_last.pt") for folder in (often, never))
    assert_same_training(one, other)


def test_a_checkpoint_has_the_averages_as_its_model_and_is_validated_on_them(
    tiny_text: Path, tmp_path: Path, uninterrupted: Path
):
    checkpoint = uninterrupted / "checkpoint_last.pt"
    state = read_checkpoint(checkpoint)
    raw = [s["raw"] for s in state["last_optimizer_state"]["state"].values()]
    weights = [w for name, w in state["model"].items() if name != "gates.values"]
    assert len(raw) == len(weights)
    assert not any(torch.equal(r, w) for r, w in zip(raw, weights, strict=True))
    # training's own validation, on four rows, is what evaluation of the file gives
    found = eval_lm(tiny_text, checkpoint, "--gen-subset", "valid", "--batch-size", 8)
    assert float(found["loss"]) == pytest.approx(state["extra_state"]["val_loss"], abs=2e-3)


def test_a_checkpoint_without_a_validation_before_it_has_the_averages_too(
    tiny_text: Path, tmp_path: Path, uninterrupted: Path
):
    (middle,) = uninterrupted.glob("checkpoint_*_120.pt")
    options = [*EIGHT_ROWS, "--max-update", 125, "--restore-file", middle]
    states = [
        read_checkpoint(train_lm(tiny_text, tmp_path / name, *options, *more) / "checkpoint_last.pt")
        for name, more in (("validated", []), ("not", ["--disable-validation"]))
    ]
    assert "raw" in states[1]["last_optimizer_state"]["state"][0]
    assert_identical(states[1]["model"], states[0]["model"])


def test_with_reset_optimizer_the_averaging_starts_anew(tiny_text: Path, tmp_path: Path, uninterrupted: Path):
    (middle,) = uninterrupted.glob("checkpoint_*_120.pt")
    assert kept(read_checkpoint(middle))["trigger"]["fired"]
    options = [*EIGHT_ROWS, "--restore-file", middle, "--reset-optimizer", "--max-update", 5]
    state = read_checkpoint(train_lm(tiny_text, tmp_path, *options) / "checkpoint_last.pt")
    assert not averages(state) and not kept(state)["trigger"]["fired"]


def test_half_precision_is_validated_and_saved_on_the_averages(tiny_text: Path, tmp_path: Path):
    # without flat gradients, which fairseq has on CUDA alone
    half = ["--fp16", "--fp16-no-flatten-grads", "--fp16-init-scale", 16]
    folder = train_lm(tiny_text, tmp_path, *EIGHT_ROWS, "--max-update", LAST, *half)
    state = read_checkpoint(folder / "checkpoint_last.pt")
    assert averages(state)
    for average, raw in zip(state["model"].values(), state["last_optimizer_state"]["state"].values(), strict=False):
        assert torch.equal(average, average.half().float())
        assert not torch.allclose(average, raw["raw"], rtol=2e-3, atol=1e-6)
    found = eval_lm(tiny_text, folder / "checkpoint_last.pt", "--gen-subset", "valid", "--batch-size", 8)
    # evaluation in float32 of what was validated in float16, which keeps three digits
    assert float(found["loss"]) == pytest.approx(state["extra_state"]["val_loss"], rel=1e-3)


def test_a_batch_size_that_changed_inside_an_epoch_is_refused_with_a_sentence(tiny_text: Path, tmp_path: Path):
    train_lm(tiny_text, tmp_path, "--max-update", 7)
    with pytest.raises(ValueError, match="block 7 of the text has 5 rows, the state before it 4: keep --batch-size"):
        train_lm(tiny_text, tmp_path, "--max-update", 9, "--batch-size", 5)


def test_a_block_length_that_changed_inside_an_epoch_is_refused_with_a_sentence(tiny_text: Path, tmp_path: Path):
    train_lm(tiny_text, tmp_path, "--max-update", 7)
    with pytest.raises(ValueError, match="no hidden state leads to block 7 .*--tokens-per-sample"):
        train_lm(tiny_text, tmp_path, "--max-update", 9, "--tokens-per-sample", 11)


def test_both_may_change_between_epochs(tiny_text: Path, tmp_path: Path):
    train_lm(tiny_text, tmp_path, "--max-epoch", 1)
    folder = train_lm(tiny_text, tmp_path, "--max-epoch", 2, "--batch-size", 5, "--tokens-per-sample", 8)
    assert position(read_checkpoint(folder / "checkpoint_last.pt"))[:2] == (3, 0)


@pytest.mark.parametrize("block_length", [1, 7, 64, 1000])
def test_with_one_row_perplexity_is_the_same_for_any_block_length(tiny_text: Path, trained: Path, block_length: int):
    found = eval_lm(tiny_text, trained, "--tokens-per-sample", block_length)
    expected = eval_lm(tiny_text, trained, "--tokens-per-sample", 10)
    # sums of some 350 float32 log-probabilities
    assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-5)


def test_carried_state_helps(tiny_text: Path, trained: Path):
    carried = eval_lm(tiny_text, trained, "--tokens-per-sample", 3)
    forgetful = eval_lm(tiny_text, trained, "--tokens-per-sample", 3, "--task", "language_modeling")
    assert carried["loss"] < forgetful["loss"] - 0.1


def test_it_trains_under_fairseqs_own_task_too(tiny_text: Path, tmp_path: Path):
    folder = train_lm(tiny_text, tmp_path, "--task", "language_modeling", "--max-epoch", 8)
    state = read_checkpoint(folder / "checkpoint_last.pt")
    assert "G2LSTMLanguageModelingTask" not in state["extra_state"]
    # the dictionary's 24 types are 4.58 bits, the text's 17 words and the lines' ends 4.17
    assert state["extra_state"]["val_loss"] < 4.17


def test_a_stock_lstm_lm_is_taken_up_by_finetuning(tiny_text: Path, tmp_path: Path):
    train_in_process(stock_lm_options(tiny_text, tmp_path / "stock", "--max-epoch", 2))
    stock = tmp_path / "stock" / "checkpoint_last.pt"
    still = ["--lr", 1e-30, "--max-update", 1, "--finetune-from-model", stock]
    taken = train_lm(tiny_text, tmp_path / "taken", "--decoder-layer-sizes", "9,9", *still) / "checkpoint_last.pt"
    losses = [float(eval_lm(tiny_text, path, "--task", "language_modeling")["loss"]) for path in (stock, taken)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("options", [[], ["--batch-size", 7], ["--batch-size", 7, "--context-window", 3]])
def test_every_token_is_scored_once_over_rows_and_shards(tiny_text: Path, trained: Path, monkeypatch, options):
    scored: list[int] = []
    generate = SequenceScorer.generate

    def watched(self, models, sample, **more):
        found = generate(self, models, sample, **more)
        scored.extend(token for (best,) in found for token in best["tokens"].tolist())
        assert all(len(best["tokens"]) == len(best["positional_scores"]) for (best,) in found)
        return found

    monkeypatch.setattr(SequenceScorer, "generate", watched)
    expected = sorted(tokens_of(tiny_text / "test"))
    eval_lm(tiny_text, trained, *options)
    assert sorted(scored) == expected
    scored.clear()
    for shard in range(2):
        eval_lm(tiny_text, trained, *options, "--num-shards", 2, "--shard-id", shard)
    assert sorted(scored) == expected


def test_a_context_window_brings_rows_nearer_to_one_row(tiny_text: Path, trained: Path):
    whole = eval_lm(tiny_text, trained)["loss"]
    rows = eval_lm(tiny_text, trained, "--batch-size", 80)["loss"]
    warmed = eval_lm(tiny_text, trained, "--batch-size", 80, "--context-window", 5)["loss"]
    assert rows > whole + 0.05 and abs(warmed - whole) < 0.3 * (rows - whole)


def test_what_is_for_training_alone_changes_no_evaluation(tiny_text: Path, trained: Path):
    assert eval_lm(tiny_text, trained, "--variable-tokens-per-sample") == eval_lm(tiny_text, trained)


def test_subwords_are_joined_in_the_whole_text_alone(tmp_path: Path):
    write_text(tmp_path, {"train": 20, "valid": 20, "test": 20})
    for split in tmp_path.glob("*.txt"):
        split.write_text(split.read_text().replace("w1 ", "w1@@ ").replace("w14 ", "w14@@ "))
    data = preprocess(tmp_path)
    checkpoint = train_lm(data, tmp_path / "model", "--max-update", 5) / "checkpoint_last.pt"
    tokens, dictionary = tokens_of(data / "test"), Dictionary.load(str(data / "dict.txt"))
    n_words = sum(not dictionary[token].endswith("@@") for token in tokens)
    length = len(tokens)
    options = ["--context-window", 2, "--tokens-per-sample"]
    apart = eval_lm(data, checkpoint, *options, length + 2)["loss"]
    joined = eval_lm(data, checkpoint, *options, length + 2, "--remove-bpe", "@@ ")["loss"]
    assert joined == pytest.approx(apart * length / n_words) and joined > 1.05 * apart
    for given in ([length + 1], [length + 2, "--batch-size", 3], [length + 2, "--num-shards", 2]):
        with pytest.raises(ValueError, match=f"give --tokens-per-sample {length + 2}, one row and one shard"):
            eval_lm(data, checkpoint, *options, *given, "--remove-bpe", "@@ ")
    with pytest.raises(ValueError, match="joins nothing by --remove-bpe alone: .* --remove-bpe '@@ '"):
        eval_lm(data, checkpoint, *options, length + 2, "--remove-bpe")


def test_text_is_sampled_from_a_prefix(tiny_text: Path, trained: Path):
    done = run_module(
        "fairseq_cli.interactive", tiny_text, "--user-dir", PLUGIN, "--cpu", "--path", trained,
        "--task", "g2lstm_language_modeling", "--sampling", "--sampling-topk", 5, "--beam", 1, "--seed", 3,
        "--max-len-b", 20, input="w1 w5 w16\nw3\n",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    texts = re.findall(r"^H-(\d)\t\S+\t(.*)$", done.stdout, re.M)
    assert [number for number, _ in texts] == ["0", "1"]
    assert texts[0][1].startswith("w1 w5 w16") and texts[1][1].startswith("w3")
    assert all(re.fullmatch(r"(w\d+ ?)+", text) for _, text in texts)


def test_validate_gives_trainings_own_number(tiny_text: Path, trained: Path):
    done = run_module(
        "fairseq_cli.validate", tiny_text, "--user-dir", PLUGIN, "--cpu", "--path", trained,
        "--task", "g2lstm_language_modeling", "--valid-subset", "valid", "--batch-size", 4, "--num-workers", 0,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    loss = float(re.search(r"valid .*?\| loss ([\d.]+)", done.stdout + done.stderr)[1])
    assert loss == pytest.approx(read_checkpoint(trained)["extra_state"]["val_loss"], abs=1e-3)


def test_the_learning_rate_is_scaled_to_the_blocks_length(tiny_text: Path, tmp_path: Path, monkeypatch):
    seen = []
    step = SGD.step

    def watched_step(self, *args, **more):
        seen.append(self.get_lr())
        return step(self, *args, **more)

    monkeypatch.setattr(SGD, "step", watched_step)
    options = ["--variable-tokens-per-sample", "--max-update", 8, "--lr", 0.5, "--update-freq", 2]
    train_lm(tiny_text, tmp_path, *options, "--disable-validation")
    n_steps = math.ceil(len(tokens_of(tiny_text / "train")) / 4)
    lengths = drawn_lengths(n_steps, 10, 1, 1)
    pairs = [sum(lengths[2 * k : 2 * k + 2]) / 2 for k in range(8)]
    assert seen == pytest.approx([0.5 * mean / 10 for mean in pairs])
    assert len(set(lengths[:16])) > 3


def settings_of_products() -> list[str]:
    backends = [getattr(torch.backends.mkldnn, "matmul", None), torch.backends.cuda.matmul]
    return [torch.get_float32_matmul_precision(), *(str(getattr(each, "fp32_precision", "")) for each in backends)]


@pytest.fixture
def high_precision() -> Iterator[list[str]]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield settings_of_products()
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("options, expected", [([], "high"), (["--float32-matmul-precision", "medium"], "medium")])
def test_products_have_the_precision_that_was_asked_for_in_updates_alone(
    tiny_text: Path, tmp_path: Path, monkeypatch, high_precision: list[str], options: list[str], expected: str
):
    seen = []
    forward = G2LSTMLanguageModel.forward

    def watched_forward(self, *args, **more):
        seen.append((self.training, torch.get_float32_matmul_precision()))
        return forward(self, *args, **more)

    monkeypatch.setattr(G2LSTMLanguageModel, "forward", watched_forward)
    folder = train_lm(tiny_text, tmp_path, "--max-update", 2, "--lr", 0.5, *options)
    assert settings_of_products() == high_precision
    assert set(seen) == {(True, expected), (False, "high")}
    load_model(folder / "checkpoint_last.pt", tiny_text)
    assert settings_of_products() == high_precision


def test_an_update_that_fails_leaves_products_as_they_were(
    tiny_text: Path, tmp_path: Path, monkeypatch, high_precision: list[str]
):
    def failing_forward(self, *args, **more):
        assert torch.get_float32_matmul_precision() == "medium"
        raise ArithmeticError("on purpose")

    monkeypatch.setattr(G2LSTMLanguageModel, "forward", failing_forward)
    with pytest.raises(ArithmeticError, match="on purpose"):
        train_lm(tiny_text, tmp_path, "--max-update", 2, "--lr", 0.5, "--float32-matmul-precision", "medium")
    assert settings_of_products() == high_precision


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch 2.9 and later has it")
def test_a_backends_own_precision_comes_back():
    """In processes of their own, since torch cannot forget that a backend was set."""
    script = """
import torch
from fairseq_g2lstm.tasks.matmul_precision import float32_matmul_precision

torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # which torch.get_float32_matmul_precision refuses to read
with float32_matmul_precision("high"):
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.mkldnn.matmul.fp32_precision == "tf32"
assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
assert torch.backends.cuda.matmul.fp32_precision == "none"
try:
    torch.get_float32_matmul_precision()
except RuntimeError:
    print("as before")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "as before\n", done.stderr


def tokens_of(split: Path) -> list[int]:
    return [int(token) for sentence in data_utils.load_indexed_dataset(str(split), None) for token in sentence]


def test_another_models_architecture_is_refused_with_a_sentence(tiny_text: Path, tmp_path: Path):
    options = stock_lm_options(tiny_text, tmp_path, "--task", "g2lstm_language_modeling")
    with pytest.raises(ValueError, match="carries hidden state, which LSTMLanguageModel cannot: use --arch g2lstm_lm"):
        train_in_process(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sample-break-mode", "eos"], "--sample-break-mode must be none"),
        (["--add-bos-token"], "--add-bos-token does not fit"),
        (["--self-target"], "predicts the next token alone"),
        (["--output-dictionary-size", 9], "--output-dictionary-size is of"),
        (["--shorten-method", "truncate"], "--shorten-method does not fit"),
        (["--tokens-per-sample", 0], "--tokens-per-sample must be > 0, got 0"),
        (["--cache-size", -1], "--cache-size must be >= 0"),
        (["--cache-size", 9, "--cache-theta", "nan"], "--cache-theta must be >= 0"),
        (["--cache-size", 9, "--cache-lambda", 1], "--cache-lambda must be >= 0 and < 1, got 1.0"),
        (["--arch", "g2lstm_lm_ptb", "--max-update", 1], "--dropout 0.2 has no effect in g2lstm_lm_ptb"),
        (["--variable-tokens-per-sample", "--sentence-avg"], "with --sentence-avg the gradient grows with it already"),
        (["--decoder-layers", 3], "--decoder-layer-sizes 9,8, given or the architecture's, stands in place of"),
        (["--arch", "g2lstm_lm_ptb", "--decoder-layers", 1, "--max-update", 1], "got --decoder-layers 1 as well"),
        (["--adaptive-softmax-cutoff", "9"], "--adaptive-softmax-cutoff needs --criterion adaptive_loss"),
        (["--adaptive-softmax-cutoff", "9", "--criterion", "cross_entropy"], "needs --criterion adaptive_loss"),
        (["--adaptive-softmax-cutoff", "9,5"], "must be comma separated, ascending integers > 0, got '9,5'"),
        (["--batch-size", 4000], "fewer than the 4000 rows"),
        (["--asgd-nonmono", -1, "--optimizer", "nt_asgd"], "--asgd-nonmono must be >= 0"),
        (["--activation-reg", -1], "--activation-reg must be >= 0 and finite, got -1"),
        (["--temporal-activation-reg", "inf"], "--temporal-activation-reg must be >= 0 and finite, got inf"),
        (["--init-range", "nan"], "--init-range must be >= 0 and finite, got nan"),
        (["--lstm-init-range", "inf"], "--lstm-init-range must be >= 0 and finite, got inf"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_with_a_sentence(tiny_text, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train_lm(tiny_text, tmp_path, *options)


@pytest.mark.parametrize("arch", ["g2lstm_lm_zaremba", "g2lstm_lm_ptb"])
def test_every_architecture_trains_goes_on_and_is_evaluated(tiny_text: Path, tmp_path: Path, arch: str):
    options = ["--arch", arch, "--decoder-dropout-in", 0.2, "--decoder-dropout-out", 0.2, "--disable-validation"]
    for n_updates in (1, 2):
        train_lm(tiny_text, tmp_path, *options, "--max-update", n_updates)
    checkpoint = tmp_path / "checkpoint_last.pt"
    assert position(read_checkpoint(checkpoint))[2] == 2
    assert eval_lm(tiny_text, checkpoint, "--gen-subset", "valid")["perplexity"] < 100


def test_averaging_without_validation_gets_a_warning(tiny_text: Path, tmp_path: Path, caplog):
    options = ["--optimizer", "nt_asgd", "--max-update", 2]
    train_lm(tiny_text, tmp_path / "validated", *options)
    train_lm(tiny_text, tmp_path / "never", *options, "--disable-validation", "--asgd-nonmono", 0)
    assert "plain SGD" not in caplog.text
    train_lm(tiny_text, tmp_path / "unnoticed", *options, "--disable-validation")
    assert caplog.text.count("which is plain SGD with --disable-validation: leave that out") == 1


def test_max_tokens_bounds_the_blocks_of_an_evaluation(tiny_text: Path, trained: Path):
    options = ["--tokens-per-sample", 20, "--max-tokens"]
    found = eval_lm(tiny_text, trained, *options, 20)
    assert found == eval_lm(tiny_text, trained, *options[:2])
    # blocks of another length: products of other sizes, in which libraries may sum otherwise
    assert float(found["loss"]) == pytest.approx(float(eval_lm(tiny_text, trained)["loss"]), rel=1e-6)
    with pytest.raises(ValueError, match="--max-tokens 19 must be at least 20, a block of 20 tokens of 1 row: change"):
        eval_lm(tiny_text, trained, *options, 19)
    with pytest.raises(ValueError, match="--max-tokens 59 must be at least 60, a block of 20 tokens of 3 rows: change"):
        eval_lm(tiny_text, trained, *options, 59, "--batch-size", 3)


def test_max_tokens_bounds_the_rows_of_a_training(tiny_text: Path, tmp_path: Path):
    folder = train_lm(tiny_text, tmp_path / "run", "--tokens-per-sample", 20, "--max-tokens", 70, "--max-update", 2)
    carried = read_checkpoint(folder / "checkpoint_last.pt")["extra_state"]["G2LSTMLanguageModelingTask"]["carried"]
    assert [len(state) for state in carried["h"]] == [3, 3]  # of 20 tokens, where --batch-size is 4


def test_an_adaptive_softmax_trains_and_is_evaluated(tiny_text: Path, tmp_path: Path):
    options = ["--adaptive-softmax-cutoff", "5,9", "--criterion", "adaptive_loss", "--ddp-backend", "legacy_ddp"]
    sizes = ["--decoder-layer-sizes", "9,10"]  # the last is not --decoder-out-embed-dim
    first, last = (train_lm(tiny_text, tmp_path / str(n), *options, *sizes, "--max-update", n) for n in (1, 100))
    perplexities = [eval_lm(tiny_text, folder / "checkpoint_last.pt")["perplexity"] for folder in (first, last)]
    assert perplexities[1] < 0.7 * perplexities[0] < 30


def test_amp_with_sgd_is_refused_with_a_sentence(tiny_text: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="--amp divides the gradients by the loss scale twice.*use --fp16"):
        train_lm(tiny_text, tmp_path, "--amp", "--max-update", 2)


def test_the_cache_is_for_evaluation_alone(tiny_text: Path, tmp_path: Path):
    options = ["--max-update", 5, "--criterion", "cross_entropy"]
    folders = [train_lm(tiny_text, tmp_path / "cached", *options, "--cache-size", 9)]
    folders.append(train_lm(tiny_text, tmp_path / "plain", *options))
    losses = [read_checkpoint(folder / "checkpoint_last.pt")["extra_state"]["val_loss"] for folder in folders]
    assert losses[0] == losses[1]


def test_generate_is_refused_with_a_sentence(tiny_text: Path, trained: Path):
    done = run_module(
        "fairseq_cli.generate", tiny_text, "--user-dir", PLUGIN, "--cpu", "--num-workers", 0,
        "--task", "g2lstm_language_modeling", "--path", trained, "--batch-size", 2,
    )  # fmt: skip
    assert done.returncode != 0 and "sample from prefixes with fairseq-interactive" in done.stderr


def test_a_missing_split_is_named(tiny_text: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="dataset not found: odd"):
        train_lm(tiny_text, tmp_path, "--valid-subset", "odd", "--ignore-unused-valid-subsets")


def train_by_hydra(data: Path, save_dir: Path, recipe: str, *options: str) -> State:
    given = ["--config-dir", ROOT / "examples" / "ptb" / "config", "--config-name", recipe]
    given += [f"task.data={data}", f"checkpoint.save_dir={save_dir}", "common.cpu=true", "dataset.batch_size=4"]
    done = run_module("fairseq_cli.hydra_train", *given, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    return read_checkpoint(save_dir / "checkpoint_last.pt")


SMALL = ("model.decoder_embed_dim=8", "model.decoder_out_embed_dim=8", "model.decoder_layers=1")


def test_hydra_trains_it_and_carries_the_state(tiny_text: Path, tmp_path: Path):
    state = train_by_hydra(tiny_text, tmp_path, "small", *SMALL, "optimization.max_update=3")
    assert position(state)[2] == kept(state)["carried"]["block"] == 3


@pytest.mark.slow
def test_hydra_trains_it_under_fairseqs_own_task_too(tiny_text: Path, tmp_path: Path):
    task = "task._name=language_modeling"
    state = train_by_hydra(tiny_text, tmp_path, "small", *SMALL, task, "optimization.max_update=3")
    assert position(state)[2] == 3 and "G2LSTMLanguageModelingTask" not in state["extra_state"]


@pytest.mark.slow
def test_hydra_trains_by_the_recipe_awd(tiny_text: Path, tmp_path: Path):
    tiny = ["+model.decoder_embed_dim=8", "+model.decoder_layer_sizes='9,8'", "+model.decoder_out_embed_dim=8"]
    tiny += ["task.tokens_per_sample=12", "dataset.batch_size_valid=4", "optimization.max_epoch=3"]
    state = train_by_hydra(tiny_text, tmp_path, "awd", *tiny)
    assert position(state)[0] == 4 and state["optimizer_history"][-1]["optimizer_name"] == "NTASGD"
    # of each epoch's end, which the trigger of the averaging looks at
    assert len(kept(state)["trigger"]["losses"]) == 3
