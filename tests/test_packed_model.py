"""Models whose weights stay packed in memory: what they hold, what they compute, and where they are unpacked."""

from pathlib import Path

import pytest
import torch
from conftest import run_module, train_in_process, train_options
from lm_runs import eval_lm
from operator_cases import needs_kernels
from test_compress_pack import packed_file
from test_compress_study import generated, language_model, translation  # noqa: F401  - fixtures
from tiny_runs import load
from torch import Tensor, nn

from fairseq_g2lstm import G2LSTM, G2LSTMCell, ops
from fairseq_g2lstm.checkpoints import read_checkpoint
from fairseq_g2lstm.compress import Selection
from fairseq_g2lstm.compress.__main__ import main
from fairseq_g2lstm.packed import Embedding, Linear, PackedMatrix
from fairseq_g2lstm.quantization import quantize_rows

pytestmark = needs_kernels
ALL = ["--gates", "all", "--others", "embeddings", "output", "projections"]


def memory(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def encoded(model: nn.Module) -> Tensor:
    tokens = torch.tensor([[4, 5, 6, 7, 2], [8, 9, 4, 2, 1]])
    with torch.no_grad():
        return model.encoder(tokens, torch.tensor([5, 4])).outputs


def test_a_packed_model_takes_about_a_quarter_of_the_memory(translation, tmp_path):  # noqa: F811
    kept = load(packed_file(translation, tmp_path, *ALL))[0]
    names = {name for name, module in kept.named_modules() if isinstance(module, PackedMatrix)}
    assert {"encoder.lstm.weight_ih_l0", "decoder.layers.0.weight_hh", "decoder.fc_out.weight"} <= names
    assert {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"} <= names
    own = load(translation)[0]
    matrices = {name: weight for name, weight in own.state_dict().items() if name in names}
    assert all(kept.state_dict()[f"{name}.q"].dtype == torch.int8 for name in names)
    bytes_saved = sum(3 * w.numel() - 4 * len(w) for w in matrices.values())
    assert memory(own) - memory(kept) == bytes_saved


@pytest.mark.parametrize("compression", ["int:8", "int:4", "rank:2", "rank:2+int:8"])
@pytest.mark.parametrize("gates", ["all", "input-forget"])
def test_what_it_computes_is_near_the_unpacked_models(
    translation, tmp_path, compression, gates  # noqa: F811
):  # fmt: skip
    packed = packed_file(translation, tmp_path, "--compression", compression, "--gates", gates)
    kept, unpacked = encoded(load(packed)[0]), encoded(load(packed, packed_weights="unpack")[0])
    if compression == "rank:2":
        torch.testing.assert_close(kept, unpacked, rtol=1e-4, atol=1e-5)
    else:
        # inputs and states are rounded to 1/32767 of their largest, some dozens of them a sum
        torch.testing.assert_close(kept, unpacked, rtol=1e-3, atol=1e-3)
        assert not torch.equal(kept, unpacked)


def test_factors_translate_as_their_product_does(tiny_data, translation, tmp_path):  # noqa: F811
    options = ["--compression", "rank:2", "--gates", "all"]
    kept = packed_file(translation, tmp_path, *options)
    found = generated(tiny_data, kept)
    assert any(isinstance(m, PackedMatrix) for m in load(kept)[0].modules())
    assert found == generated(tiny_data, packed_file(translation, tmp_path, *options, "--packed-weights", "unpack"))


def test_integers_translate_nearly_as_the_unpacked_do(tiny_data, translation, tmp_path):  # noqa: F811
    found = generated(tiny_data, packed_file(translation, tmp_path, *ALL))
    unpacked = generated(tiny_data, packed_file(translation, tmp_path, *ALL, "--packed-weights", "unpack"))
    # a tiny model is seldom sure of itself, so that a sentence may tip over
    assert sum(a == b for a, b in zip(found, unpacked, strict=True)) >= 0.9 * len(found)


def test_a_packed_language_model_is_near_the_unpacked(tiny_text, language_model, tmp_path):  # noqa: F811
    packed = packed_file(language_model, tmp_path, *ALL)
    assert any(isinstance(module, PackedMatrix) for module in load(packed)[0].modules())
    unpacked = eval_lm(tiny_text, packed, "--model-overrides", "{'packed_weights': 'unpack'}")
    found = eval_lm(tiny_text, packed)
    # what is left of rounding to 16 bits; fairseq prints two places
    assert float(found["perplexity"]) == pytest.approx(float(unpacked["perplexity"]), rel=1e-3)


@pytest.mark.parametrize("compression", ["int:8", "rank:2+int:8"])
def test_tied_embeddings_stay_tied(tiny_data, tmp_path, compression):
    prefixes = [f"--{split}pref={tiny_data.parent / split}" for split in ("train", "valid", "test")]
    data = tmp_path / "joined"
    command = ["-s=de", "-t=en", *prefixes, f"--destdir={data}", "--joined-dictionary"]
    assert run_module("fairseq_cli.preprocess", *command).returncode == 0
    options = ["--max-update", 2, "--share-all-embeddings"]
    train_in_process(train_options(data, tmp_path, "g2lstm", *options))
    packed = packed_file(tmp_path / "checkpoint_last.pt", tmp_path, *ALL, "--compression", compression)
    state = read_checkpoint(packed)["model"]
    key = "q" if compression == "int:8" else "left"
    of_both = [state[f"packed.{side}.embed_tokens.weight.{key}"].data_ptr() for side in ("encoder", "decoder")]
    assert of_both[0] == of_both[1]
    weights = read_checkpoint(tmp_path / "checkpoint_last.pt")["model"]
    parts = [part.name for part in Selection("all", others=("embeddings", "output")).parts(weights)]
    assert [name for name in parts if "embed" in name] == ["encoder.embed_tokens.weight"], "the search counts it once"
    model = load(packed)[0]
    embedding = model.encoder.embed_tokens
    assert isinstance(embedding.weight, PackedMatrix) and embedding is model.decoder.embed_tokens
    x = torch.randn(2, model.decoder.h_size)
    torch.testing.assert_close(
        model.decoder.output_layer(x), x @ embedding.weight.weight().unpacked().t(), rtol=1e-3, atol=1e-3
    )
    tokens = torch.tensor([[3, 5], [1, 0]])
    torch.testing.assert_close(embedding(tokens), embedding.weight.weight().unpacked()[tokens])
    assert len(generated(data, packed)) > 0


def test_where_there_are_no_kernels_integers_are_unpacked(translation, tmp_path, monkeypatch, caplog):  # noqa: F811
    packed = packed_file(translation, tmp_path, *ALL)
    unpacked = load(packed, packed_weights="unpack")[0]
    monkeypatch.setattr(ops, "integer_products", lambda: False)
    model = load(packed)[0]
    assert "packed weights are unpacked to float32, since the kernels" in caplog.text
    expected = unpacked.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())


def test_training_packed_weights_is_refused_with_a_sentence(tiny_data, translation, tmp_path):  # noqa: F811
    packed = packed_file(translation, tmp_path)
    with pytest.raises(ValueError, match="cannot be trained: load them with --packed-weights unpack"):
        load(packed)[0].train()
    options = ["--finetune-from-model", packed, "--encoder-bidirectional", "--packed-weights", "keep"]
    with pytest.raises(ValueError, match="cannot be trained"):
        train_in_process(train_options(tiny_data, tmp_path / "more", "g2lstm", *options))


def test_scales_keep_their_precision_in_half_models(translation, tmp_path):  # noqa: F811
    model = load(packed_file(translation, tmp_path))[0]
    before = model.encoder.lstm.weight_ih_l0.scales.clone()
    model.half()
    assert model.encoder.lstm.bias_ih_l0.dtype == torch.float16
    assert torch.equal(model.encoder.lstm.weight_ih_l0.scales, before)


@pytest.mark.parametrize("compression", ["int:8", "rank:2", "rank:2+int:8"])
def test_half_models_with_packed_embeddings_encode(translation, tmp_path, compression):  # noqa: F811
    packed = packed_file(translation, tmp_path, *ALL, "--compression", compression)
    expected = encoded(load(packed)[0])
    found = encoded(load(packed)[0].bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.05)


def test_a_state_dict_of_a_packed_model_loads_into_it(translation, tmp_path):  # noqa: F811
    packed = packed_file(translation, tmp_path, *ALL)
    model, other = load(packed)[0], load(packed)[0]
    with torch.no_grad():
        other.encoder.lstm.weight_ih_l0.q.zero_()
    other.load_state_dict(model.state_dict())
    assert torch.equal(encoded(model), encoded(other))


def test_gates_of_a_packed_model_are_observed(translation, tmp_path):  # noqa: F811
    from fairseq_g2lstm.gate_stats import observe_gates

    packed = packed_file(translation, tmp_path, *ALL)
    seen: dict[bool, list[Tensor]] = {}
    for keep in (True, False):
        model = load(packed, packed_weights="keep" if keep else "unpack")[0]
        seen[keep] = []
        with observe_gates(model, lambda _n, _l, _r, z, valid, keep=keep: seen[keep].append(z[valid])):
            encoded(model)
    for kept, unpacked in zip(seen[True], seen[False], strict=True):
        torch.testing.assert_close(kept, unpacked, rtol=0.01, atol=0.01)


def test_packed_weights_of_another_size_are_refused_with_a_sentence(translation, tmp_path):  # noqa: F811
    packed = packed_file(translation, tmp_path)
    with pytest.raises(ValueError, match="the packed encoder.lstm.weight_ih_l0 has shape"):
        load(packed, encoder_hidden_size=7, decoder_hidden_size=14)


def test_a_study_of_a_packed_checkpoint_is_refused_with_a_sentence(tiny_data, translation, tmp_path, capsys):  # noqa: F811
    packed = packed_file(translation, tmp_path, *ALL)
    options = ["--data", str(tiny_data), "--out", str(tmp_path / "study"), "--compressions", "int:4"]
    assert main(["study", str(packed), *options]) == 1
    assert "is packed already: give the one that it was made of" in capsys.readouterr().err


# The modules by themselves


def replace(module: nn.Module, name: str) -> Tensor:
    """Packs a module's matrix, and returns what it stands for."""
    q, scales = quantize_rows(module._parameters.pop(name).detach(), 8)
    module.add_module(name, PackedMatrix({"q": q, "scales": scales}))
    return q.float() * scales[:, None]


def test_embedding_and_linear_with_packed_weights():
    embedding, linear = Embedding(9, 4), Linear(4, 6)
    rows, weight = replace(embedding, "weight"), replace(linear, "weight")
    tokens = torch.tensor([[1, 8], [0, 1]])
    with torch.no_grad():
        assert torch.equal(embedding(tokens), rows[tokens])
        expected = nn.functional.linear(rows[tokens], weight, linear.bias)
        torch.testing.assert_close(linear(embedding(tokens)), expected, rtol=1e-3, atol=1e-3)


def test_layers_and_cells_with_packed_weights():
    for module, name in ((G2LSTM(5, 3), "weight_ih_l0"), (G2LSTMCell(5, 3), "weight_ih")):
        module.eval()
        x = torch.randn(4, 2, 5) if isinstance(module, G2LSTM) else torch.randn(2, 5)
        with torch.no_grad():
            for each in (name, name.replace("ih", "hh")):
                unpacked = replace(module, each)
                del module._modules[each]
                module.register_parameter(each, nn.Parameter(unpacked))
            expected = module(x)[0]
            for each in (name, name.replace("ih", "hh")):
                replace(module, each)  # what integers stand for is stored in the same integers
            if isinstance(module, G2LSTM):
                assert [w.shape for w in module.all_weights[0]] == [(12, 5), (12, 3), (12,), (12,)]
                assert torch.equal(module.all_weights[0][1], unpacked)
            torch.testing.assert_close(module(x)[0], expected, rtol=1e-3, atol=1e-3)


def test_a_packed_checkpoint_says_how_it_is_to_be_loaded(translation, tmp_path):  # noqa: F811
    assert read_checkpoint(packed_file(translation, tmp_path))["cfg"]["model"]["packed_weights"] == "keep"
    unpacked: Path = packed_file(translation, tmp_path, "--packed-weights", "unpack")
    assert read_checkpoint(unpacked)["cfg"]["model"]["packed_weights"] == "unpack"
