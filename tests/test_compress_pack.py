"""Packed checkpoints: smaller, read by fairseq's commands as they are, equal to the study, refused where damaged."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import PLUGIN, run_module
from lm_runs import eval_lm
from test_compress_study import generated, language_model, translation  # noqa: F401  - fixtures
from tiny_runs import load

from fairseq_g2lstm.checkpoints import read_checkpoint, write_checkpoint
from fairseq_g2lstm.compress import Evaluator, Selection, compressed, parse, uniform_plan
from fairseq_g2lstm.compress.__main__ import main
from fairseq_g2lstm.loading import load_model
from fairseq_g2lstm.packed import META, Packing, pack_weights, unpack_weights

NAME, BIAS = "decoder.layers.0.weight_ih", "decoder.layers.0.bias_ih"


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {NAME: torch.randn(12, 7, generator=generator), BIAS: torch.randn(12, generator=generator)}


def packed_file(checkpoint: Path, folder: Path, *options: str) -> Path:
    target = folder / "packed.pt"
    assert main(["pack", str(checkpoint), str(target), *options]) == 0
    return target


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [6, 5, 12])
def test_integers_come_back_as_the_study_has_them(bits: int, rows: int):
    state = pack_weights(weights(), [Packing(NAME, rows, bits), Packing(BIAS, rows, bits)])
    assert NAME not in state and state[f"packed.{NAME}.q"].numel() == (rows * 7 if bits == 8 else (rows * 7 + 1) // 2)
    unpack_weights(state)
    for name, weight in weights().items():
        expected = weight.clone()
        expected[:rows] = parse(f"int:{bits}").apply(weight[:rows])
        assert torch.equal(state[name], expected)
    assert state.keys() == weights().keys()


def test_factors_come_back_as_the_study_has_them_and_what_gains_nothing_stays():
    state = pack_weights(weights(), [Packing(NAME, 12, rank=2), Packing(BIAS, 12, rank=2)])
    assert state[f"packed.{NAME}.left"].shape == (12, 2) and torch.equal(state[BIAS], weights()[BIAS])
    unpack_weights(state)
    assert torch.equal(state[NAME], parse("rank:2").apply(weights()[NAME]))
    assert torch.equal(pack_weights(weights(), [Packing(NAME, 12, rank=5)])[NAME], weights()[NAME])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [12, 7])
def test_factors_in_integers_come_back_as_the_study_has_them(bits: int, rows: int):
    state = pack_weights(weights(), [Packing(NAME, rows, bits, rank=2), Packing(BIAS, rows, bits, rank=2)])
    assert state[f"packed.{NAME}.left_scales"].shape == (rows,) and state[f"packed.{NAME}.left"].dtype != torch.float32
    unpack_weights(state)
    for name, weight in weights().items():
        assert torch.equal(state[name][:rows], parse(f"rank:2+int:{bits}").apply(weight[:rows]))
        assert torch.equal(state[name][rows:], weight[rows:])


def test_the_first_version_of_the_format_is_read():
    state = pack_weights(weights(), [Packing(NAME, 6, 8), Packing(BIAS, 6, 4)])
    expected = dict(state)
    unpack_weights(expected)
    text = bytes(state[META].tolist()).replace(b'"version": 2', b'"version": 1')
    state[META] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    unpack_weights(state)
    assert all(torch.equal(state[name], expected[name]) for name in weights())


def test_tied_weights_are_stored_once():
    weight = weights()[NAME]
    state = pack_weights({"a": weight, "b": weight.clone()}, [Packing("a", 12, 8), Packing("b", 12, 8)])
    assert state["packed.a.q"] is state["packed.b.q"]


def test_weights_that_are_not_packed_are_left_alone():
    state = weights()
    unpack_weights(state)
    assert all(torch.equal(state[name], weight) for name, weight in weights().items())


@pytest.mark.parametrize("key", [f"packed.{NAME}.q", f"packed.{NAME}.scales", BIAS])
def test_a_changed_weight_is_refused_with_a_sentence(key: str):
    state = pack_weights(weights(), [Packing(NAME, 6, 8)])
    state[key] = state[key].clone()
    state[key].view(-1)[0] += 1
    with pytest.raises(ValueError, match=f"damaged, {key} is not what was written"):
        unpack_weights(state)


def test_a_missing_weight_is_refused_with_a_sentence():
    state = pack_weights(weights(), [Packing(NAME, 6, 8)])
    del state[f"packed.{NAME}.scales"]
    with pytest.raises(ValueError, match="incomplete, it lacks packed"):
        unpack_weights(state)


def test_a_later_version_and_a_damaged_description_are_refused_with_a_sentence():
    state = pack_weights(weights(), [Packing(NAME, 6, 8)])
    text = bytes(state[META].tolist()).replace(b'"version": 2', b'"version": 3')
    state[META] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    with pytest.raises(ValueError, match="packed in version 3 of the format, this is for 2: install a later"):
        unpack_weights(state)
    state[META] = state[META][:-5]
    with pytest.raises(ValueError, match="its description cannot be read"):
        unpack_weights(state)


@pytest.mark.parametrize("compression", ["int:8", "int:4", "rank:2", "rank:2+int:8"])
def test_an_unpacked_models_translations_are_the_studys(tiny_data, translation, tmp_path, compression):  # noqa: F811
    options = ["--gates", "all", "--biases", "--others", "output", "--packed-weights", "unpack"]
    packed = packed_file(translation, tmp_path, "--compression", compression, *options)
    evaluator = Evaluator(translation, tiny_data)
    selection = Selection("all", biases=True, others=("output",))
    changed = compressed(evaluator.weights, uniform_plan(evaluator.weights, parse(compression), selection))
    assert generated(tiny_data, packed) == evaluator.score(changed).hypotheses


def test_an_unpacked_language_models_perplexity_is_the_studys(tiny_text, language_model, tmp_path):  # noqa: F811
    packed = packed_file(language_model, tmp_path, "--compression", "int:4", "--packed-weights", "unpack")
    evaluator = Evaluator(language_model, tiny_text, batch_size=1)
    plan = uniform_plan(evaluator.weights, parse("int:4"), Selection())
    expected = evaluator.score(compressed(evaluator.weights, plan)).value
    assert float(eval_lm(tiny_text, packed)["perplexity"]) == pytest.approx(expected, rel=1e-5)


def test_the_command_says_what_was_saved(tiny_data, translation, tmp_path, capsys):  # noqa: F811
    packed = packed_file(translation, tmp_path, "--gates", "all", "--gate-eval-mode", "hard")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["LSTM layers", "whole model", "file"]
    before, after = (int(part.split()[0].replace(",", "")) for part in lines[2].split(":")[1].split("->"))
    assert (before, after) == (translation.stat().st_size, packed.stat().st_size) and after < before / 2
    state = read_checkpoint(packed)
    assert state["cfg"]["model"]["gate_eval_mode"] == "hard" and "last_optimizer_state" not in state
    assert load(packed)[0].gate_settings.mode(training=False).hard


def test_fairseq_generate_reads_it_in_a_fresh_process_and_refuses_a_damaged_one(
    tiny_data, translation, tmp_path  # noqa: F811
):  # fmt: skip
    packed = packed_file(translation, tmp_path)
    command = [tiny_data, "--user-dir", PLUGIN, "--cpu", "--num-workers", 0, "--path"]
    assert run_module("fairseq_cli.generate", *command, packed).returncode == 0
    state = read_checkpoint(packed)
    key = next(name for name in state["model"] if name.endswith(".q"))
    state["model"][key][0] += 1
    write_checkpoint(state, tmp_path / "damaged.pt")
    done = run_module("fairseq_cli.generate", *command, tmp_path / "damaged.pt")
    assert done.returncode != 0 and f"the packed checkpoint is damaged, {key} is not what was written" in done.stderr


def test_a_packed_checkpoint_trains_on_and_converts(tiny_data, translation, tmp_path):  # noqa: F811
    from conftest import train_in_process, train_options

    packed = packed_file(translation, tmp_path, "--packed-weights", "unpack")
    options = ["--finetune-from-model", packed, "--max-update", 2, "--encoder-bidirectional"]
    train_in_process(train_options(tiny_data, tmp_path / "more", "g2lstm", *options))
    weights = read_checkpoint(tmp_path / "more" / "checkpoint_last.pt")["model"]
    assert not any(name.startswith("packed.") for name in weights)
    from fairseq_g2lstm.convert import main as convert

    assert convert([str(packed), str(tmp_path / "stock.pt"), "--to", "lstm"]) == 0
    assert generated(tiny_data, tmp_path / "stock.pt") == generated(tiny_data, packed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compression", "round:0.5"], "packed by int:8, int:4, rank:K or both as rank:K+int:8, got round:0.5"),
        (["--compression", "int:6"], "packed by int:8, int:4, rank:K or both as rank:K+int:8, got int:6"),
    ],
)
def test_what_cannot_be_packed_is_said(translation, tmp_path, capsys, arguments, message):  # noqa: F811
    assert main(["pack", str(translation), str(tmp_path / "packed.pt"), *arguments]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "packed.pt").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("command", ["pack", "study", "search"])
def test_a_diverged_training_is_refused(tiny_data, translation, tmp_path, capsys, command, value):  # noqa: F811
    state = read_checkpoint(translation)
    state["model"]["decoder.layers.0.weight_hh"][3, 1] = value
    diverged = tmp_path / "diverged.pt"
    write_checkpoint(state, diverged)
    data = ["--data", str(tiny_data)]
    more = {"pack": [str(tmp_path / "p.pt")], "search": [str(tmp_path / "p.pt"), *data]}
    assert main([command, str(diverged), *more.get(command, [*data, "--out", str(tmp_path / "out")])]) == 1
    said = capsys.readouterr().err
    assert "diverged.pt: decoder.layers.0.weight_hh holds infinite numbers or NaN: the training diverged" in said
    assert not (tmp_path / "p.pt").exists()


def test_files_of_pretrained_embeddings_may_be_gone(tiny_data, train, tmp_path):
    files = {option: tmp_path / option for option in ("encoder", "decoder")}
    for path, word in zip(files.values(), "wx", strict=True):
        path.write_text(f"1 16\n{word}3" + " 0.25" * 16 + "\n")
    options = ["--encoder-embed-path", files["encoder"], "--decoder-embed-path", files["decoder"]]
    checkpoint = train("run", *options, "--max-update", 2) / "checkpoint_last.pt"
    for path in files.values():
        path.unlink()
    model, _ = load_model(checkpoint, tiny_data)
    assert torch.equal(model.state_dict()[NAME], read_checkpoint(checkpoint)["model"][NAME])
    assert load(packed_file(checkpoint, tmp_path))[0] is not None


def test_a_packed_checkpoint_is_not_packed_again(translation, tmp_path, capsys):  # noqa: F811
    packed = packed_file(translation, tmp_path)
    assert main(["pack", str(packed), str(tmp_path / "again.pt")]) == 1
    assert "is packed already" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["pack", "export", "search"])
def test_a_checkpoint_is_not_written_over(tiny_data, translation, tmp_path, capsys, command):  # noqa: F811
    checkpoint = tmp_path / "given.pt"
    shutil.copy(translation, checkpoint)
    more = ["--data", str(tiny_data)] if command == "search" else []
    assert main([command, str(checkpoint), str(checkpoint), *more]) == 1
    assert "is the checkpoint itself" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given.pt"]
    assert checkpoint.read_bytes() == translation.read_bytes()


def test_weights_leave_as_safetensors(translation, tmp_path):  # noqa: F811
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    packed = packed_file(translation, tmp_path)
    assert main(["export", str(packed), str(tmp_path / "weights.safetensors")]) == 0
    found = safetensors.load_file(tmp_path / "weights.safetensors")
    expected = load(packed, packed_weights="unpack")[0].state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
