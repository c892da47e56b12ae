"""fairseq's commands and the plugin's own, as a user types them, on a tiny corpus.

What a command alone can show starts a process, once; the variants of generation and validation run in this one.
"""

import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, train_in_process, train_options
from fairseq import checkpoint_utils
from fairseq import options as fairseq_options

from fairseq_g2lstm.checkpoints import read_checkpoint
from fairseq_g2lstm.loading import load_model

# All need the model that `trained` trains.
pytestmark = pytest.mark.slow

# Enough to learn to reverse nine words, and to end at the temperature that the tests of the modes need; see `trained`.
UPDATES = 150
LAST_TEMPERATURE = 0.5


def console(name: str, *arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess:
    """Runs one of fairseq's commands from the repository root: its installed script, or the module behind it."""
    script = Path(sys.executable).parent / name
    module = "fairseq_cli." + name.removeprefix("fairseq-").replace("-", "_")
    start = [str(script)] if script.exists() else [sys.executable, "-m", module]
    return subprocess.run(
        [*start, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
    )


def succeeded(done: subprocess.CompletedProcess) -> str:
    """What a process printed, log included, once it has ended well."""
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@dataclass
class Translations:
    """What fairseq-generate and fairseq-interactive print: by number of the sentence; BLEU and its line at the end."""

    sources: dict[int, str]
    references: dict[int, str]
    hypotheses: dict[int, str]
    scores: dict[int, float]
    bleu_line: str

    @classmethod
    def parse(cls, text: str) -> "Translations":
        def lines(letter: str) -> dict[int, list[str]]:
            found = (re.fullmatch(rf"{letter}-(\d+)\t(.*)", line) for line in text.splitlines())
            return {int(match[1]): match[2].split("\t") for match in found if match}

        hypotheses = lines("H")
        bleu = re.search(r"BLEU4 = .*", text)
        return cls(
            {number: parts[0] for number, parts in lines("S").items()},
            {number: parts[0] for number, parts in lines("T").items()},
            {number: parts[1] for number, parts in hypotheses.items()},
            {number: float(parts[0]) for number, parts in hypotheses.items()},
            bleu[0] if bleu else "",
        )

    @property
    def bleu(self) -> float:
        return float(self.bleu_line.split()[2].rstrip(","))

    def scores_differ_by(self, scores: dict[int, float]) -> float:
        """The largest distance of two sets of scores of the same sentences."""
        assert self.scores.keys() == scores.keys()
        return max(abs(score - scores[number]) for number, score in self.scores.items())


def generate_options(data: Path, checkpoint: Path, *more: object) -> list[str]:
    # fairseq leaves out a split's last batch where its size is no multiple of eight, unless told otherwise.
    options = [data, "--user-dir", "fairseq_g2lstm", "--cpu", "--path", checkpoint, "--beam", 5]
    return [str(option) for option in [*options, "--required-batch-size-multiple", 1, *more]]


def generate_in_process(data: Path, checkpoint: Path, results: Path, *more: object) -> Translations:
    from fairseq_cli.generate import main

    options = generate_options(data, checkpoint, "--results-path", results, "--num-workers", 0, *more)
    main(fairseq_options.parse_args_and_arch(fairseq_options.get_generation_parser(), input_args=options))
    return Translations.parse((results / "generate-test.txt").read_text())


@dataclass
class Trained:
    save_dir: Path
    log: str

    @property
    def checkpoint(self) -> Path:
        return self.save_dir / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model that fairseq-train has trained until it translates."""
    save_dir = tmp_path_factory.mktemp("trained")
    sizes = []
    for name in ("encoder-embed-dim", "encoder-hidden-size", "decoder-embed-dim", "decoder-hidden-size"):
        sizes += [f"--{name}", 32]
    done = console(
        *("fairseq-train", tiny_data, "--user-dir", "fairseq_g2lstm", "--cpu", "--seed", 1),
        *("--arch", "g2lstm_iwslt", *sizes, "--decoder-out-embed-dim", 32, "--encoder-bidirectional", "--dropout", 0),
        *("--criterion", "g2lstm_label_smoothed_cross_entropy", "--label-smoothing", 0.1),
        *("--gate-temperature-schedule", "linear", "--gate-temperature-end", LAST_TEMPERATURE),
        *("--gate-temperature-updates", UPDATES - 1, "--gate-stats-interval", 5),
        *("--optimizer", "adam", "--lr", 0.02, "--clip-norm", 1, "--max-tokens", 400, "--max-update", UPDATES),
        *("--update-epoch-batch-itr", "True", "--required-batch-size-multiple", 1, "--num-workers", 0),
        *("--save-dir", save_dir, "--no-epoch-checkpoints", "--log-format", "simple", "--log-interval", 10),
    )
    return Trained(save_dir, succeeded(done))


@pytest.fixture(scope="module")
def translated(tiny_data: Path, trained: Trained) -> Translations:
    """The test split as fairseq-generate translates it with the trained model."""
    return Translations.parse(succeeded(console("fairseq-generate", *generate_options(tiny_data, trained.checkpoint))))


def test_fairseq_train_logs_the_schedule_and_the_gates_and_saves_what_it_ended_with(trained):
    valid = [line for line in trained.log.splitlines() if "valid on 'valid' subset" in line]
    assert f"gumbel_temperature {LAST_TEMPERATURE} |" in valid[-1]
    for name in ("gumbel_noise_prob", "input_gates_low", "input_gates_high", "forget_gates_low", "forget_gates_high"):
        assert re.search(rf"\| {name} 0\.\d+ \|", valid[-1]), name
    state = read_checkpoint(trained.checkpoint)
    assert state["model"]["gates.values"][0].item() == pytest.approx(LAST_TEMPERATURE)
    assert state["cfg"]["model"]["_name"] == "g2lstm_iwslt"
    assert (trained.save_dir / "checkpoint_best.pt").exists()


def test_fairseq_generate_translates_with_a_trained_model_and_not_with_an_untrained_one(
    tiny_data, trained, translated, tmp_path
):
    assert len(translated.hypotheses) == 40
    assert translated.bleu > 60
    options = ["--encoder-bidirectional", "--max-update", 1, "--disable-validation", "--no-epoch-checkpoints"]
    train_in_process(train_options(tiny_data, tmp_path / "untrained", "g2lstm_iwslt", *options))
    untrained = generate_in_process(tiny_data, tmp_path / "untrained" / "checkpoint_last.pt", tmp_path)
    assert untrained.bleu < 10


def test_fairseq_interactive_gives_the_translations_of_fairseq_generate(tiny_data, trained, translated):
    numbers = sorted(translated.sources)[:6]
    typed = "".join(translated.sources[number] + "\n" for number in numbers)
    options = generate_options(tiny_data, trained.checkpoint, "--buffer-size", 4, "--max-tokens", 200)
    answers = Translations.parse(succeeded(console("fairseq-interactive", *options, stdin=typed)))
    assert [answers.hypotheses[i] for i in range(6)] == [translated.hypotheses[number] for number in numbers]
    # Other sentences in the batch, so other last bits.
    for i, number in enumerate(numbers):
        assert answers.scores[i] == pytest.approx(translated.scores[number], abs=1e-4)


def valid_values(text: str) -> dict[str, float]:
    """The values of the last line that reports on the valid split."""
    line = [line for line in text.splitlines() if "valid on 'valid' subset" in line][-1]
    return {name: float(value) for name, value in re.findall(r"\| (\w+) ([\d.]+)", line)}


def test_fairseq_validate_finds_the_loss_that_training_ended_with(tiny_data, trained):
    options = [tiny_data, "--task", "translation", "--user-dir", "fairseq_g2lstm", "--cpu"]
    options += ["--path", trained.checkpoint, "--max-tokens", 400, "--required-batch-size-multiple", 1]
    options += ["--log-format", "simple"]
    values = valid_values(succeeded(console("fairseq-validate", *options)))
    last = valid_values(trained.log)
    for name in ("loss", "nll_loss", "gumbel_temperature", "input_gates_high", "forget_gates_low"):
        assert values[name] == pytest.approx(last[name], abs=1.1e-3), name


def test_fairseq_score_gives_the_bleu_of_fairseq_generate(translated, tmp_path):
    for name, lines in (("sys", translated.hypotheses), ("ref", translated.references)):
        (tmp_path / name).write_text("".join(lines[number] + "\n" for number in sorted(lines)))
    done = console("fairseq-score", "--sys", tmp_path / "sys", "--ref", tmp_path / "ref")
    assert translated.bleu_line in succeeded(done)


HYDRA_CONFIG = """
common: {{user_dir: {user_dir}, cpu: true, seed: 1}}
task: {{_name: translation, data: {data}}}
dataset: {{max_tokens: 200, num_workers: 0, update_epoch_batch_itr: true, required_batch_size_multiple: 1}}
optimization: {{max_update: 3, lr: [0.01]}}
optimizer: {{_name: adam}}
lr_scheduler: {{_name: fixed}}
criterion:
  _name: g2lstm_label_smoothed_cross_entropy
  label_smoothing: 0.2
  gate_temperature_schedule: linear
  gate_temperature_start: 0.8
  gate_temperature_end: 0.6
  gate_temperature_updates: 2
model: {{_name: g2lstm_iwslt, gate_type: sharpened, decoder_hidden_size: 48}}
checkpoint: {{save_dir: {save_dir}, no_epoch_checkpoints: true}}
"""


def test_fairseq_hydra_train_applies_the_architecture_and_what_the_file_overrides(tiny_data, tmp_path):
    text = HYDRA_CONFIG.format(user_dir=ROOT / "fairseq_g2lstm", data=tiny_data, save_dir=tmp_path / "saved")
    (tmp_path / "tiny.yaml").write_text(text)
    options = ["--config-dir", tmp_path, "--config-name", "tiny", f"hydra.run.dir={tmp_path / 'run'}"]
    succeeded(console("fairseq-hydra-train", *options))
    checkpoint = tmp_path / "saved" / "checkpoint_last.pt"
    state = read_checkpoint(checkpoint)
    weights, model, criterion = state["model"], state["cfg"]["model"], state["cfg"]["criterion"]
    # g2lstm_iwslt has 256 units where g2lstm has 512; the file alone sets the decoder's.
    assert weights["encoder.lstm.weight_hh_l0"].shape == (4 * 256, 256)
    assert weights["decoder.layers.0.weight_hh"].shape == (4 * 48, 48)
    assert (model["gate_type"], criterion["label_smoothing"]) == ("sharpened", 0.2)
    assert weights["gates.values"][0].item() == pytest.approx(0.6)
    assert len(generate_in_process(tiny_data, checkpoint, tmp_path).hypotheses) == 40


def test_a_bidirectional_stack_with_all_embeddings_shared_trains_and_translates(tiny_data, tmp_path):
    from fairseq_cli.preprocess import main as preprocess

    prefixes = [f"--{split}pref={tiny_data.parent / split}" for split in ("train", "valid", "test")]
    parser = fairseq_options.get_preprocessing_parser()
    data = tmp_path / "joined"
    preprocess(parser.parse_args(["-s=de", "-t=en", *prefixes, f"--destdir={data}", "--joined-dictionary"]))
    options = ["--encoder-bidirectional", "--encoder-layers", 2, "--decoder-layers", 2, "--share-all-embeddings"]
    options += ["--gate-type", "gumbel", "--max-update", 3, "--no-epoch-checkpoints"]
    log = succeeded(console("fairseq-train", *train_options(data, tmp_path / "saved", "g2lstm", *options)))
    assert "num_updates 3" in log
    weights = read_checkpoint(tmp_path / "saved" / "checkpoint_last.pt")["model"]
    assert weights["encoder.lstm.weight_ih_l1_reverse"].shape == (4 * 16, 2 * 16)
    assert torch.equal(weights["encoder.embed_tokens.weight"], weights["decoder.embed_tokens.weight"])
    assert "decoder.fc_out.weight" not in weights
    translations = generate_in_process(data, tmp_path / "saved" / "checkpoint_last.pt", tmp_path)
    assert len(translations.hypotheses) == 40


@pytest.fixture(scope="module")
def stock(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a stock `lstm` that stock fairseq has trained a little."""
    save_dir = tmp_path_factory.mktemp("stock")
    options = ["--encoder-bidirectional", "--max-update", 60, "--disable-validation", "--no-epoch-checkpoints"]
    train_in_process(train_options(tiny_data, save_dir, "lstm", *options))
    return save_dir / "checkpoint_last.pt"


def assert_same_translations(a: Translations, b: Translations) -> None:
    assert len(set(a.hypotheses.values())) > 5
    assert a.hypotheses == b.hypotheses
    assert a.scores_differ_by(b.scores) < 1e-4


def test_a_stock_checkpoint_converted_on_the_command_line_translates_alike(tiny_data, stock, command, tmp_path):
    converted = tmp_path / "g2lstm.pt"
    done = command("fairseq_g2lstm.convert", stock, converted, "--to", "g2lstm")
    assert f"wrote {converted}: g2lstm" in succeeded(done)
    assert read_checkpoint(converted)["cfg"]["model"]["_name"] == "g2lstm"
    before = generate_in_process(tiny_data, stock, tmp_path / "before")
    assert_same_translations(before, generate_in_process(tiny_data, converted, tmp_path / "after"))


def test_a_g2lstm_checkpoint_converted_on_the_command_line_translates_alike(
    tiny_data, trained, translated, command, tmp_path
):
    converted = tmp_path / "lstm.pt"
    done = command("fairseq_g2lstm.convert", trained.checkpoint, converted, "--to", "lstm")
    assert f"wrote {converted}: lstm" in succeeded(done)
    model = checkpoint_utils.load_model_ensemble([str(converted)])[0][0]
    assert type(model).__module__ == "fairseq.models.lstm"
    assert_same_translations(translated, generate_in_process(tiny_data, converted, tmp_path))


def rescored(checkpoint: Path, data: Path, translations: Translations, mode: str) -> dict[int, float]:
    """Scores of the hypotheses, teacher-forced one by one, with the gates of a mode: bits a token, end of sentence
    included, as fairseq prints them."""
    model, task = load_model(checkpoint, data)
    settings = replace(model.gate_settings, eval_mode=mode)
    for module in (model.encoder.lstm, model.decoder):
        module.gate_settings = settings
    scores = {}
    for number, hypothesis in translations.hypotheses.items():
        source = task.source_dictionary.encode_line(translations.sources[number], add_if_not_exist=False).long()
        target = task.target_dictionary.encode_line(hypothesis, add_if_not_exist=False).long()
        previous = torch.cat((target[-1:], target[:-1]))
        with torch.no_grad():
            logits, _ = model(source[None], torch.tensor([len(source)]), previous[None])
        lprobs = torch.log_softmax(logits[0].double(), -1).gather(1, target[:, None])
        scores[number] = lprobs.mean().item() / math.log(2)
    return scores


@pytest.mark.parametrize("mode", ["soft", "tempered", "hard"])
def test_the_evaluation_mode_of_generation_is_the_one_that_is_asked_for(tiny_data, trained, tmp_path, mode):
    overrides = ["--model-overrides", f"{{'gate_eval_mode': '{mode}'}}"]
    translations = generate_in_process(tiny_data, trained.checkpoint, tmp_path, *overrides)
    for other in ("soft", "tempered", "hard"):
        difference = translations.scores_differ_by(rescored(trained.checkpoint, tiny_data, translations, other))
        # Beam search decodes step by step in batches: the same scores but for the last bits.
        assert (difference < 1e-4) if other == mode else (difference > 1e-2), (other, difference)


def test_without_an_override_gumbel_gates_are_soft(tiny_data, trained, translated):
    assert translated.scores_differ_by(rescored(trained.checkpoint, tiny_data, translated, "soft")) < 1e-4


def test_fairseq_generate_takes_the_evaluation_mode_as_typed(tiny_data, trained, translated, tmp_path):
    overrides = ["--model-overrides", "{'gate_eval_mode': 'hard'}"]
    done = console("fairseq-generate", *generate_options(tiny_data, trained.checkpoint, *overrides))
    hard = Translations.parse(succeeded(done))
    assert_same_translations(hard, generate_in_process(tiny_data, trained.checkpoint, tmp_path, *overrides))
    assert hard.scores_differ_by(translated.scores) > 1e-2


def validate_in_process(
    data: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> dict[str, float]:
    from fairseq.logging import metrics
    from fairseq.logging.progress_bar import SimpleProgressBar
    from fairseq_cli.validate import cli_main

    values: dict[str, float] = {}
    monkeypatch.setattr(SimpleProgressBar, "print", lambda _bar, stats, tag=None, step=None: values.update(stats))
    metrics.reset()
    options = [data, "--task", "translation", "--user-dir", ROOT / "fairseq_g2lstm", "--cpu", "--path", checkpoint]
    options += ["--max-tokens", 400, "--required-batch-size-multiple", 1, "--log-format", "simple", "--num-workers", 0]
    options += ["--model-overrides", f"{{'gate_eval_mode': '{mode}'}}"]
    monkeypatch.setattr(sys, "argv", ["fairseq-validate", *map(str, options)])
    cli_main()
    return values


@pytest.mark.parametrize("mode", ["soft", "tempered", "hard"])
def test_validation_takes_the_evaluation_mode(tiny_data, trained, monkeypatch, mode):
    values = validate_in_process(tiny_data, trained.checkpoint, monkeypatch, mode)
    model, task = load_model(trained.checkpoint, tiny_data)
    settings = replace(model.gate_settings, eval_mode=mode)
    for module in (model.encoder.lstm, model.decoder):
        module.gate_settings = settings
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    sample = dataset.collater([dataset[i] for i in range(len(dataset))])
    with torch.no_grad():
        lprobs = model.get_normalized_probs(model(**sample["net_input"]), log_probs=True)
    valid = sample["target"].ne(task.target_dictionary.pad())
    nll = -lprobs.gather(2, sample["target"].unsqueeze(2)).squeeze(2)[valid].mean().item() / math.log(2)
    # fairseq prints three digits.
    assert values["nll_loss"] == pytest.approx(nll, abs=1e-3)
    if mode == "hard":
        shares = [values[f"{kind}_gates_low"] + values[f"{kind}_gates_high"] for kind in ("input", "forget")]
        assert shares == pytest.approx([1, 1], abs=1e-3)


def test_an_unknown_evaluation_mode_gets_a_sentence(tiny_data, trained, tmp_path):
    sentence = "--gate-eval-mode must be one of auto, soft, tempered, hard, got 'loud'"
    with pytest.raises(ValueError, match=sentence):
        generate_in_process(
            tiny_data, trained.checkpoint, tmp_path, "--model-overrides", "{'gate_eval_mode': 'loud'}"
        )
