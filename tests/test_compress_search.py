"""The search for the smallest packing, on a translation model of a tiny corpus and with made-up sensitivities."""

import json

import pytest
import torch
from test_compress_study import generated, stock, translation  # noqa: F401  - fixtures

from fairseq_g2lstm.checkpoints import read_checkpoint
from fairseq_g2lstm.compress import Evaluator, Selection, parse
from fairseq_g2lstm.compress.__main__ import main
from fairseq_g2lstm.compress.evaluate import Score
from fairseq_g2lstm.compress.search import search

CANDIDATES = ["int:8", "int:4", "rank:1"]
# how much a model suffers from each transform of each matrix, in BLEU and nats alike, made up
PRICES = {"int:8": 0.01, "int:4": 0.1, "rank:1": 1.0}
FRAGILE = "decoder.layers.0.weight_hh"


@pytest.fixture
def made_up(monkeypatch):
    """Evaluation by a formula: each matrix costs its transform's price, one of them ten times as much."""
    evaluated = []

    def cost(evaluator: Evaluator, weights: dict[str, torch.Tensor]) -> float:
        own, total = evaluator.weights, 0.0
        for name, weight in weights.items():
            half = len(weight) // 2
            (used,) = [c for c in CANDIDATES if torch.equal(parse(c).apply(own[name][:half]), weight[:half])]
            total += PRICES[used] * (10 if name == FRAGILE else 1)
        evaluated.append(total)
        return total

    monkeypatch.setattr(Evaluator, "loss", lambda self, weights: 1 + cost(self, weights))
    monkeypatch.setattr(Evaluator, "score", lambda self, weights: Score("BLEU", 40 - cost(self, weights), [], 0.0))
    return evaluated


def test_a_stock_model_is_refused_before_anything_is_measured(tiny_data, stock, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="is of lstm, only g2lstm and g2lstm_lm read packed weights: convert it first"):
        search(stock, tiny_data, 0.2, tmp_path / "work", CANDIDATES, report=lambda line: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("allowed", "of_the_others", "of_the_fragile"),
    [
        (0, "float32", "float32"),
        (0.01, None, "float32"),
        (0.2, "int:8", "int:8"),
        (0.65, "int:4", "int:8"),
        (100, "rank:1", "rank:1"),
    ],
)
def test_what_bears_more_is_packed_more(
    tiny_data, translation, tmp_path, made_up, allowed, of_the_others, of_the_fragile  # noqa: F811
):  # fmt: skip
    found = search(translation, tiny_data, allowed, tmp_path / "work", CANDIDATES, report=lambda line: None)
    parts = list(Selection().parts(read_checkpoint(translation)["model"]))
    names = {part.name: found.choice[part].name if part in found.choice else "float32" for part in parts}
    assert names.pop(FRAGILE) == of_the_fragile
    if of_the_others is None:  # one matrix alone
        assert sorted(names.values()) == ["float32"] * (len(names) - 1) + ["int:8"]
    else:
        assert set(names.values()) == {of_the_others}
    assert found.own - found.value <= allowed and found.own == 40
    weights = read_checkpoint(translation)["model"]
    blocks = {part: weights[part.name][: part.rows] for part in parts}
    expected = sum(found.choice.get(part, parse("float32")).bytes(block) for part, block in blocks.items())
    assert found.bytes == (sum(4 * block.numel() for block in blocks.values()), expected)
    assert len(found.reasons) == len(parts)


def test_a_search_goes_on_where_it_was(tiny_data, translation, tmp_path, made_up):  # noqa: F811
    first = search(translation, tiny_data, 0.5, tmp_path / "work", CANDIDATES, report=lambda line: None)
    n_evaluated = len(made_up)
    assert search(translation, tiny_data, 0.5, tmp_path / "work", CANDIDATES, report=lambda line: None) == first
    assert len(made_up) == n_evaluated > 10
    search(translation, tiny_data, 0.5, tmp_path / "work", CANDIDATES, split="test", report=lambda line: None)
    assert len(made_up) > n_evaluated, "on other data all is measured anew"


def test_the_command_packs_what_it_found(tiny_data, translation, tmp_path, capsys):  # noqa: F811
    packed = tmp_path / "packed.pt"
    arguments = ["search", str(translation), str(packed), "--data", str(tiny_data), "--allowed", "1000"]
    assert main([*arguments, "--candidates", "int:8", "--split", "test", "--packed-weights", "unpack"]) == 0
    printed = capsys.readouterr().out
    assert "chosen, BLEU" in printed and "LSTM layers:" in printed
    kept = json.loads((tmp_path / "packed.pt.json").read_text())
    parts = Selection().parts(read_checkpoint(translation)["model"])
    everywhere = ", ".join(sorted(f"{part.name} int:8" for part in parts))
    assert Evaluator(packed, tiny_data).score().value == pytest.approx(kept["scores"][everywhere])
    assert len(generated(tiny_data, packed)) == 40


def test_the_command_says_what_the_packed_checkpoint_scores(
    tiny_data, translation, tmp_path, capsys, monkeypatch  # noqa: F811
):  # fmt: skip
    packed = tmp_path / "packed.pt"
    arguments = ["search", str(translation), str(packed), "--data", str(tiny_data), "--candidates", "int:8"]
    assert main([*arguments, "--allowed", "50"]) == 0
    value = Evaluator(packed, tiny_data, "valid").score().value
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"as packed, kept in memory as it is stored: BLEU {value:.2f}"
    )
    monkeypatch.setattr(Evaluator, "score", lambda *_args: Score("BLEU", -60.0, None, 0.0))
    assert main([*arguments, "--allowed", "50"]) == 0
    assert "lost and more than is allowed: --packed-weights unpack keeps to it" in capsys.readouterr().out


@pytest.mark.parametrize("text", ['{"setting": {', "[1, 2]"], ids=["cut off", "of something else"])
def test_what_holds_no_measurements_is_named(tiny_data, translation, tmp_path, capsys, text):  # noqa: F811
    (tmp_path / "packed.pt.json").write_text(text)
    assert main(["search", str(translation), str(tmp_path / "packed.pt"), "--data", str(tiny_data)]) == 1
    said = f"error: {tmp_path / 'packed.pt.json'} holds no measurements, or not all of them: delete it\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--allowed", "-1"], "--allowed must be >= 0, got -1.0"), (["--candidates", "round:1"], "is packed by int:8")],
)
def test_a_wrong_option_is_refused_with_a_sentence(
    tiny_data, translation, tmp_path, capsys, arguments, message  # noqa: F811
):  # fmt: skip
    command = ["search", str(translation), str(tmp_path / "packed.pt"), "--data", str(tiny_data)]
    assert main([*command, *arguments]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "packed.pt").exists()
