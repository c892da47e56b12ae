"""The model g2lstm_lm: equal to the stock lstm_lm, its regularisers, its carried state."""

from argparse import Namespace
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import models
from fairseq.data import Dictionary, TruncatedDictionary
from fairseq.models.lstm_lm import LSTMLanguageModel
from fairseq.models.lstm_lm import base_architecture as stock_architecture
from omegaconf import OmegaConf
from torch import Tensor

from fairseq_g2lstm import ops
from fairseq_g2lstm.config_lm import G2LSTMLanguageModelConfig, apply_to_given, resolve
from fairseq_g2lstm.gate_stats import observe_gates
from fairseq_g2lstm.models.cache import CacheSettings
from fairseq_g2lstm.models.language_model import G2LSTMLanguageModel

N_WORDS = 23
SMALL = {"decoder_embed_dim": 6, "decoder_hidden_size": 7, "decoder_layers": 2, "decoder_out_embed_dim": 6}


def make_task() -> Any:
    dictionary = Dictionary()
    for word in range(N_WORDS - dictionary.nspecial):
        dictionary.add_symbol(f"w{word}")
    return SimpleNamespace(
        dictionary=dictionary, source_dictionary=dictionary, target_dictionary=dictionary
    )


def build(**options: Any) -> G2LSTMLanguageModel:
    torch.manual_seed(3)
    given = {"_name": "g2lstm_lm", "dropout": 0.0, "gate_type": "sigmoid", **SMALL, **options}
    if "decoder_layer_sizes" in options:
        del given["decoder_layers"], given["decoder_hidden_size"]
    return G2LSTMLanguageModel.build_model(Namespace(**given), make_task())


def text(n_rows: int, n_steps: int) -> Tensor:
    return torch.randint(4, N_WORDS, (n_rows, n_steps), generator=torch.Generator().manual_seed(5))


def logits_in_blocks(model: G2LSTMLanguageModel, tokens: Tensor, edges: list[int]) -> Tensor:
    blocks = zip([0, *edges], [*edges, tokens.size(1)], strict=True)
    return torch.cat([model(tokens[:, a:b], block=k)[0] for k, (a, b) in enumerate(blocks)], 1)


@pytest.mark.parametrize("tied", [False, True])
def test_with_sigmoid_gates_it_computes_what_the_stock_lstm_lm_computes(tied):
    sizes = {**SMALL, "dropout": 0.0, "share_decoder_input_output_embed": tied}
    arguments = Namespace(criterion="cross_entropy", **sizes)
    stock_architecture(arguments)
    stock = LSTMLanguageModel.build_model(arguments, make_task()).double().eval()
    model = build(share_decoder_input_output_embed=tied).double().eval()
    state = stock.state_dict()
    model.upgrade_state_dict(state)
    model.load_state_dict(state)
    tokens = text(3, 9)
    torch.testing.assert_close(model(tokens)[0], stock(tokens)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("edges", [[1], [3, 4], [5, 6, 7, 8], list(range(1, 12))])
def test_a_text_in_blocks_gives_the_whole_texts_logits(edges):
    model = build(decoder_layer_sizes="7,5,6", gate_type="gumbel").double().eval()
    tokens = text(2, 12)
    torch.testing.assert_close(logits_in_blocks(model, tokens, edges), model(tokens)[0], rtol=1e-10, atol=1e-12)


def test_block_0_starts_from_zeros_whatever_came_before():
    model = build().eval()
    tokens = text(2, 4)
    first = model(tokens, block=0)[0]
    model(tokens, block=1)
    assert torch.equal(model(tokens, block=0)[0], first)


def test_without_a_block_number_nothing_is_carried():
    model = build().eval()
    tokens = text(2, 4)
    alone = model(tokens)[0]
    model(tokens, block=0)
    assert torch.equal(model(tokens)[0], alone)
    assert not torch.equal(model(tokens, block=1)[0], alone)


def test_training_and_evaluation_carry_states_of_their_own():
    model = build()
    tokens = text(2, 8)
    model.train()
    model(tokens[:, :4], block=0)
    model.eval()
    model(text(3, 5), block=0)
    model.train()
    gone_on = model(tokens[:, 4:], block=1)[0]
    torch.testing.assert_close(gone_on, model.eval()(tokens)[0][:, 4:])


def test_a_block_given_again_starts_where_it_started():
    model = build().eval()
    tokens = text(2, 8)
    model(tokens[:, :4], block=0)
    once = model(tokens[:, 4:], block=1)[0]
    assert torch.equal(model(tokens[:, 4:], block=1)[0], once)


def test_no_history_of_the_caches_keys_is_kept():
    model = build().eval()
    model.decoder.cache = CacheSettings(size=5)
    tokens = text(2, 8)
    for block in range(2):
        assert model(tokens[:, 4 * block : 4 * block + 4], block=block)[0].requires_grad
    assert not model.decoder.carried(False).newest()[1].keys.requires_grad


def test_a_dictionary_that_was_shortened_for_the_targets_cannot_be_tied():
    task = make_task()
    task.target_dictionary = TruncatedDictionary(task.dictionary, 10)
    options = {"_name": "g2lstm_lm", **SMALL, "share_decoder_input_output_embed": True}
    with pytest.raises(ValueError, match="for inputs and outputs: leave out --output-dictionary-size"):
        G2LSTMLanguageModel.build_model(Namespace(**options), task)


def test_no_gradient_flows_from_one_block_into_the_one_before():
    model = build().train()
    tokens = text(2, 8)
    model(tokens[:, :4], block=0)
    (one,) = torch.autograd.grad(model(tokens[:, 4:], block=1)[0].sum(), [model.decoder.layers[0].weight_hh])
    assert torch.isfinite(one).all() and one.abs().sum() > 0
    state = model.decoder.carried(True).newest()[1]
    assert not any(part.requires_grad for part in (*state.h, *state.c))


def test_the_sharing_of_noise_reaches_the_operators(monkeypatch):
    seen = []
    operator = ops.lstm_layer

    def watched(*given, mode, **more):
        seen.append(mode.noise_sharing)
        return operator(*given, mode=mode, **more)

    monkeypatch.setattr(ops, "lstm_layer", watched)
    build(gate_type="gumbel", gate_noise_sharing="mask").train()(text(2, 4))
    assert seen == ["mask"] * SMALL["decoder_layers"]


@pytest.mark.parametrize("block", [2, 7])
def test_a_block_out_of_order_is_refused_with_a_sentence(block):
    model = build().eval()
    with pytest.raises(ValueError, match=rf"no hidden state leads to block {block} .*--tokens-per-sample"):
        model(text(2, 4), block=block)


def test_a_block_that_was_left_out_is_passed_over():
    model = build().eval()
    tokens = text(2, 12)
    model(tokens[:, :4], block=0)
    found = model(tokens[:, 8:], block=2)[0]
    torch.testing.assert_close(found, model(torch.cat([tokens[:, :4], tokens[:, 8:]], 1))[0][:, 4:])


@pytest.mark.parametrize(("before", "after"), [(0, 3), (1, 4), (2, 4)])
def test_as_many_blocks_as_an_update_has_may_be_left_out_the_first_ones_too(before: int, after: int):
    model = build().train()
    model.decoder.carried(training=True).kept_before = 3
    tokens = text(2, 8)
    model(tokens[:, :4], block=0)  # of an epoch before
    model.decoder.carried(training=True).at(0)
    for block in range(before):
        model(tokens[:, :4], block=block)
    found = model(tokens[:, 4:], block=after)[0]
    read = torch.cat([*[tokens[:, :4]] * before, tokens[:, 4:]], 1)
    torch.testing.assert_close(found, model.eval()(read)[0][:, 4 * before :])
    model.train()
    with pytest.raises(ValueError, match=f"no hidden state leads to block {after + 5}"):
        model(tokens, block=after + 5)


def test_the_blocks_of_an_update_may_be_given_again():
    model = build().eval()
    model.decoder.carried(training=False).kept_before = 3
    tokens = text(2, 12)
    blocks = [model(tokens[:, 3 * k : 3 * k + 3], block=k)[0] for k in range(4)]
    again = [model(tokens[:, 3 * k : 3 * k + 3], block=k)[0] for k in range(1, 4)]
    assert all(torch.equal(one, other) for one, other in zip(again, blocks[1:], strict=True))


def test_another_number_of_rows_is_refused_with_a_sentence():
    model = build().eval()
    model(text(2, 4), block=0)
    with pytest.raises(ValueError, match="has 3 rows, the state before it 2"):
        model(text(3, 4), block=1)


def test_step_by_step_decoding_gives_the_whole_texts_logits():
    model = build(decoder_layer_sizes="7,5", decoder_out_embed_dim=6).double().eval()
    tokens, state = text(3, 6), {}
    steps = [model.decoder(tokens[:, : t + 1], incremental_state=state)[0] for t in range(6)]
    torch.testing.assert_close(torch.cat(steps, 1), model(tokens)[0], rtol=1e-10, atol=1e-12)


def test_reordering_the_incremental_state_moves_the_rows():
    model = build().double().eval()
    tokens, state, order = text(3, 6), {}, torch.tensor([2, 0, 0])
    model.decoder(tokens[:, :1], incremental_state=state)
    model.decoder(tokens[:, :2], incremental_state=state)
    model.decoder.reorder_incremental_state_scripting(state, order)
    moved = tokens[order]
    found = model.decoder(moved[:, :3], incremental_state=state)[0]
    torch.testing.assert_close(found, model(moved[:, :3])[0][:, -1:], rtol=1e-10, atol=1e-12)


def test_weight_drop_drops_the_recurrent_matrices_alone_and_once_a_block(monkeypatch):
    seen = []
    layer = ops.lstm_layer

    def spy(x: Tensor, h_0: Tensor, c_0: Tensor, w_ih: Tensor, w_hh: Tensor, *rest: Any, **options: Any) -> Any:
        seen.append((w_ih, w_hh))
        return layer(x, h_0, c_0, w_ih, w_hh, *rest, **options)

    monkeypatch.setattr(ops, "lstm_layer", spy)
    model = build(decoder_hidden_size=60, decoder_weight_drop=0.5).train()
    model(text(2, 6))
    assert len(seen) == 2
    for (w_ih, w_hh), cell in zip(seen, model.decoder.cells(), strict=True):
        assert w_ih is cell.weight_ih
        kept = w_hh != 0
        torch.testing.assert_close(w_hh[kept], 2 * cell.weight_hh[kept])
        # 14,400 elements, p = 0.5: five standard deviations are 0.021
        assert abs(kept.float().mean().item() - 0.5) < 0.021
    seen.clear()
    model.eval()(text(2, 6))
    assert all(w_hh is cell.weight_hh for (_, w_hh), cell in zip(seen, model.decoder.cells(), strict=True))


def test_locked_dropout_drops_the_same_elements_at_all_steps():
    model = build(
        decoder_dropout_type="locked", decoder_dropout_out=0.5, decoder_hidden_size=40, lstm_init_range=0.5
    ).train()
    _, extra = model(text(4, 6))
    kept = extra["dropped_outputs"] != 0
    assert (kept == kept[:1]).all()
    assert not (kept[:, 1:] == kept[:, :-1]).all()  # rows have masks of their own
    torch.testing.assert_close(extra["dropped_outputs"][kept], 2 * extra["outputs"][kept])


@pytest.mark.parametrize("place", ["decoder_dropout_in", "decoder_dropout_hidden"])
def test_locked_dropout_comes_before_the_first_layer_and_between_layers(monkeypatch, place):
    seen = []
    layer = ops.lstm_layer

    def spy(x: Tensor, *rest: Any, **options: Any) -> Any:
        returned = layer(x, *rest, **options)
        seen.append((x, returned[0]))
        return returned

    monkeypatch.setattr(ops, "lstm_layer", spy)
    others = {"decoder_dropout_in": 0.0, "decoder_dropout_hidden": 0.0, "decoder_dropout_out": 0.0}
    sizes = {"decoder_embed_dim": 40, "decoder_hidden_size": 40, "lstm_init_range": 0.5}
    model = build(decoder_dropout_type="locked", **{**others, place: 0.5}, **sizes).train()
    tokens = text(4, 6)
    model(tokens)
    (first, between), (second, _) = seen
    undropped = [(first, model.decoder.embed_tokens(tokens.t())), (second, between)]
    for name, (found, whole) in zip(others, undropped, strict=False):
        kept = found != 0
        assert kept.all() == (name != place)
        assert (kept == kept[:1]).all()  # the same at all steps
        torch.testing.assert_close(found[kept], (2 if name == place else 1) * whole[kept])
        if name == place:
            assert not (kept[:, 1:] == kept[:, :-1]).all()  # rows have masks of their own


def test_plain_dropout_draws_at_each_step():
    _, extra = build(decoder_dropout_out=0.5, decoder_hidden_size=40).train()(text(4, 6))
    kept = extra["dropped_outputs"] != 0
    assert not (kept == kept[:1]).all()


def test_embedding_dropout_drops_a_type_in_all_its_places():
    model = build(decoder_dropout_embed=0.5, decoder_dropout_in=0.0).train()
    tokens = text(8, 40)
    x = model.decoder._embed(tokens)
    full = model.decoder.embed_tokens(tokens)
    dropped = (x == 0).all(-1)
    assert 0 < dropped.sum() < dropped.numel()
    for word in tokens.unique():
        places = dropped[tokens == word]
        assert places.all() or not places.any()
    torch.testing.assert_close(x[~dropped], 2 * full[~dropped])


def test_gates_are_observed_with_the_padding_marked():
    model = build(decoder_layer_sizes="7,5").eval()
    seen = []
    with observe_gates(model, lambda name, layer, reverse, z, valid: seen.append((layer, z.shape, valid))):
        model(text(2, 4), src_lengths=torch.tensor([4, 2]))
    assert [(layer, tuple(shape)) for layer, shape, _ in seen] == [(0, (4, 2, 14)), (1, (4, 2, 10))]
    assert seen[0][2].tolist() == [[True, True], [True, True], [True, False], [True, False]]


def test_rows_beyond_the_lengths_are_padding():
    # as fairseq's --pad-to-fixed-bsz makes them
    model, tokens = build().eval(), text(3, 4)
    found, _ = model(tokens, src_lengths=torch.tensor([4, 2]))
    expected, _ = model(tokens, src_lengths=torch.tensor([4, 2, 0]))
    assert torch.equal(found, expected)
    valid = []
    with observe_gates(model, lambda name, layer, reverse, z, valid_here: valid.append(valid_here)):
        model(tokens, src_lengths=torch.tensor([4, 4]))
    assert valid[0][:, 2].tolist() == [False] * 4 and valid[0][:, :2].all()


def test_the_base_architecture_has_the_stock_models_sizes():
    stock, ours = Namespace(), resolve(Namespace(_name="g2lstm_lm"))
    stock_architecture(stock)
    for name in (
        "dropout", "decoder_embed_dim", "decoder_out_embed_dim", "decoder_hidden_size", "decoder_layers",
        "share_decoder_input_output_embed", "decoder_dropout_in", "decoder_dropout_out",
    ):  # fmt: skip
        assert getattr(ours, name) == getattr(stock, name), name


def test_the_awd_architecture_has_its_sizes_and_ties():
    model = G2LSTMLanguageModel.build_model(Namespace(_name="g2lstm_lm_ptb"), make_task())
    cells = model.decoder.cells()
    assert [(cell.input_size, cell.hidden_size) for cell in cells] == [(400, 1150), (1150, 1150), (1150, 400)]
    assert model.decoder.weight_drop == 0.5 and model.decoder.share_input_output_embed
    assert model.decoder.output_bias is not None and not hasattr(model.decoder, "fc_out")
    bound = 1150**-0.5
    assert 0.99 * bound < cells[0].weight_hh.abs().max() <= bound


@pytest.mark.parametrize("name", ["decoder_layers", "decoder_hidden_size"])
def test_sizes_beside_those_of_the_awd_architecture_are_refused_even_if_they_are_defaults(name: str):
    options = Namespace()
    apply_to_given("g2lstm_lm_ptb", options)
    default = getattr(options, name)
    with pytest.raises(ValueError, match=rf"sizes 1150,1150,400, .* got --{name.replace('_', '-')} {default} as well"):
        apply_to_given("g2lstm_lm_ptb", Namespace(**{name: default}))
    assert len(G2LSTMLanguageModel.build_model(options, make_task()).decoder.layers) == 3


@pytest.mark.parametrize(
    ("name", "given"), [("g2lstm_lm_ptb", {}), ("g2lstm_lm_zaremba", {"decoder_layer_sizes": "20,650"})]
)
def test_an_architecture_may_be_applied_twice_as_fairseq_does(name, given):
    options = Namespace(**given)
    apply_to_given(name, options)
    before = vars(options).copy()
    apply_to_given(name, options)
    assert vars(options) == before and resolve(Namespace(_name=name, **before))


@pytest.mark.parametrize("kind", [lambda given: Namespace(**given), OmegaConf.create])
@pytest.mark.parametrize("size", [{"decoder_layers": 1}, {"decoder_layers": 3}, {"decoder_hidden_size": 400}])
def test_hydra_is_refused_them_too(kind, size):
    with pytest.raises(ValueError, match=r"sizes 1150,1150,400, .* got --decoder-[a-z-]+ \d+ as well"):
        resolve(kind({"_name": "g2lstm_lm_ptb", **size}))


def test_sizes_of_all_layers_that_are_the_architectures_are_refused_beside_those_of_each():
    options = Namespace(decoder_layer_sizes="8,8", decoder_layers=2, decoder_hidden_size=650)
    with pytest.raises(ValueError, match="sizes 8,8, .* got --decoder-layers 2 and --decoder-hidden-size 650 as well"):
        apply_to_given("g2lstm_lm_zaremba", options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"_name": "g2lstm_lm_ptb", "decoder_layers": 1}, "got --decoder-layers 1 as well"),
        ({"_name": "g2lstm_lm_zaremba", "decoder_layer_sizes": "9,650", "decoder_layers": 2}, "-layers 2 as well"),
        ({"_name": "g2lstm_lm_ptb", "dropout": 0.1, "decoder_dropout_in": 0.3}, "--dropout 0.1 has no effect"),
        ({"_name": "g2lstm_lm_ptb"}, None),
        ({"_name": "g2lstm_lm_zaremba", "dropout": 0.1}, None),
        ({"_name": "g2lstm_lm", "decoder_layer_sizes": "8,8"}, None),
    ],
)
def test_fairseq_builds_what_a_file_for_hydra_gives_or_says_what_has_no_effect(options, message):
    given = OmegaConf.create({**asdict(G2LSTMLanguageModelConfig()), **options})
    if message is not None:
        with pytest.raises(ValueError, match=message):
            models.build_model(given, make_task())
        return
    model = models.build_model(given, make_task())
    # a checkpoint keeps these options, filled in as they may be by now
    again = models.build_model(OmegaConf.create(OmegaConf.to_container(given)), make_task())
    assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize("more", [{}, {"decoder_dropout_in": 0.3}, {"decoder_dropout_out": 0.3}])
def test_dropout_is_refused_where_the_architecture_leaves_it_no_effect(more: dict[str, float]):
    message = r"--dropout 0.1 has no effect in g2lstm_lm_ptb, .* --decoder-dropout-hidden .*: give these"
    with pytest.raises(ValueError, match=message):
        apply_to_given("g2lstm_lm_ptb", Namespace(dropout=0.1, **more))
    with pytest.raises(ValueError, match=message):
        resolve(OmegaConf.create({"_name": "g2lstm_lm_ptb", "dropout": 0.1, **more}))


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("g2lstm_lm_zaremba", {}),
        ("g2lstm_lm", {"decoder_dropout_in": 0.3, "decoder_dropout_out": 0.2}),
        ("g2lstm_lm_ptb", {"decoder_dropout_in": 0.3, "decoder_dropout_out": 0.2}),
    ],
)
def test_dropout_may_be_given_where_it_has_effect_or_its_places_are_given_too(name, places):
    options = Namespace(dropout=0.4, **places)
    for _ in range(2):
        apply_to_given(name, options)
    assert options.dropout == 0.4
    assert options.decoder_dropout_in == places.get("decoder_dropout_in", 0.4)
    assert options.decoder_dropout_out == places.get("decoder_dropout_out", 0.4)


def test_the_zaremba_architecture_has_its_sizes():
    model = G2LSTMLanguageModel.build_model(Namespace(_name="g2lstm_lm_zaremba"), make_task())
    assert [(cell.input_size, cell.hidden_size) for cell in model.decoder.cells()] == [(650, 650)] * 2
    assert model.decoder.dropout_hidden_module.p == model.decoder.dropout_in_module.p == 0.5
    assert 0.049 < max(p.abs().max() for p in model.parameters()) <= 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_layer_sizes": "7,x"}, "--decoder-layer-sizes must be comma separated integers > 0, got '7,x'"),
        ({"decoder_weight_drop": 1.5}, "--decoder-weight-drop"),
        ({"decoder_dropout_embed": -0.1}, "--decoder-dropout-embed"),
        ({"decoder_dropout_type": "odd"}, "--decoder-dropout-type must be one of plain, locked, got 'odd'"),
        ({"init_range": -1.0}, "--init-range must be >= 0 and finite, got -1.0"),
        ({"share_decoder_input_output_embed": True, "decoder_out_embed_dim": 5}, "got 6 and 5"),
        ({"decoder_layers": 0}, "--decoder-layers must be > 0, got 0"),
    ],
)
def test_a_wrong_option_is_refused_with_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
