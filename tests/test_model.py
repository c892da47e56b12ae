"""The fairseq model against the stock `lstm`, teacher-forced against incremental, and its options."""

from argparse import Namespace

import pytest
import torch
from fairseq import utils
from fairseq.sequence_generator import SequenceGenerator
from tiny_runs import SMALL, build, build_stock, training_config

from fairseq_g2lstm import ops
from fairseq_g2lstm.config import ARCHITECTURES, G2LSTMConfig, resolve
from fairseq_g2lstm.models.g2lstm import G2LSTMModel

VARIANTS = {
    "plain": {},
    "bidirectional": {"encoder_bidirectional": True},
    "two layers": {"encoder_layers": 2, "decoder_layers": 2},
    "two bidirectional layers": {"encoder_layers": 2, "decoder_layers": 2, "encoder_bidirectional": True},
    "no attention": {"decoder_attention": "0"},
    "other output size": {"decoder_out_embed_dim": 5},
    "tied output": {"share_decoder_input_output_embed": True, "decoder_out_embed_dim": 7},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_sigmoid_gates_give_the_stock_models_logits_and_gradients(task, sample, variant):
    stock = build_stock(task, **VARIANTS[variant]).double()
    model = build(task, gate_type="sigmoid", **VARIANTS[variant]).double()
    assert list(dict(model.named_parameters())) == list(dict(stock.named_parameters()))
    model.load_state_dict(stock.state_dict())
    logits, attention = model.eval()(**sample["net_input"])
    expected, expected_attention = stock.eval()(**sample["net_input"])
    valid = sample["target"].ne(task.target_dictionary.pad())
    torch.testing.assert_close(logits[valid], expected[valid], rtol=0, atol=1e-10)
    if expected_attention is not None:
        torch.testing.assert_close(attention[valid], expected_attention[valid], rtol=0, atol=1e-10)
    for m in (model, stock):
        m.train()
        lprobs = m.get_normalized_probs(m(**sample["net_input"]), log_probs=True)
        lprobs.gather(2, sample["target"].unsqueeze(2)).squeeze(2)[valid].sum().backward()
    for (name, weight), other in zip(model.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("gate_type", ["gumbel", "sharpened", "sigmoid"])
@pytest.mark.parametrize("variant", ["two bidirectional layers", "no attention"])
def test_incremental_decoding_equals_teacher_forcing(task, sample, variant, gate_type):
    model = build(task, gate_type=gate_type, **VARIANTS[variant]).eval()
    tokens = sample["net_input"]["prev_output_tokens"]
    teacher_forced, attention = model(**sample["net_input"])
    encoder_out = model.encoder(sample["net_input"]["src_tokens"], sample["net_input"]["src_lengths"])
    state: dict = {}
    for t in range(tokens.size(1)):
        logits, weights = model.decoder(tokens[:, : t + 1], encoder_out, state)
        torch.testing.assert_close(logits[:, 0], teacher_forced[:, t], rtol=0, atol=1e-5)
        if attention is not None:
            torch.testing.assert_close(weights[:, 0], attention[:, t], rtol=0, atol=1e-5)


def test_reordering_the_incremental_state_moves_every_row_with_its_history(task, sample):
    model = build(task, encoder_layers=2, decoder_layers=2).eval()
    tokens = sample["net_input"]["prev_output_tokens"]
    encoder_out = model.encoder(sample["net_input"]["src_tokens"], sample["net_input"]["src_lengths"])
    order = torch.tensor([3, 3, 0, 7, 1])
    straight: dict = {}
    reordered: dict = {}
    for t in range(3):
        expected, _ = model.decoder(tokens[:, : t + 1], encoder_out, straight)
        if t < 2:
            model.decoder(tokens[:, : t + 1], encoder_out, reordered)
    model.decoder.reorder_incremental_state(reordered, order)
    moved = model.encoder.reorder_encoder_out(encoder_out, order)
    logits, _ = model.decoder(tokens[order, :3], moved, reordered)
    torch.testing.assert_close(logits, expected[order], rtol=0, atol=1e-6)


def test_source_order_and_padding_side_do_not_change_the_logits(task, sample):
    model = build(task, encoder_bidirectional=True).eval()
    net_input = sample["net_input"]
    expected, _ = model(**net_input)
    order = torch.randperm(len(net_input["src_lengths"]), generator=torch.Generator().manual_seed(1))
    logits, _ = model(**{name: value[order] for name, value in net_input.items()})
    torch.testing.assert_close(logits, expected[order], rtol=0, atol=1e-6)
    pad = task.source_dictionary.pad()
    on_the_right = utils.convert_padding_direction(net_input["src_tokens"], pad, left_to_right=True)
    assert not torch.equal(on_the_right, net_input["src_tokens"])
    logits, _ = model(**{**net_input, "src_tokens": on_the_right})
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sharing", ["step", "mask", "sequence"])
def test_the_sharing_of_noise_reaches_the_operators(task, sample, monkeypatch, sharing):
    seen = []

    def watch(operator):
        return lambda *inputs, mode, **more: (seen.append(mode.noise_sharing), operator(*inputs, mode=mode, **more))[1]

    for name in ("lstm_layer", "decoder"):
        monkeypatch.setattr(ops, name, watch(getattr(ops, name)))
    build(task, gate_type="gumbel", gate_noise_sharing=sharing).train()(**sample["net_input"])
    assert seen == [sharing] * 2


@pytest.mark.parametrize("wanted", [False, True])
def test_at_generation_there_is_attention_where_it_is_asked_for(task, sample, wanted):
    model = build(task).eval()
    model.make_generation_fast_(need_attn=wanted)
    assert (model(**sample["net_input"])[1] is not None) == wanted
    encoder_out = model.encoder(sample["net_input"]["src_tokens"], sample["net_input"]["src_lengths"])
    assert (model.decoder(sample["net_input"]["prev_output_tokens"][:, :1], encoder_out, {})[1] is not None) == wanted


def test_the_model_itself_has_no_limit_of_length_that_sentences_meet(task):
    assert min(build(task).max_positions()) >= 100_000


def test_noise_acts_in_training_alone_and_follows_the_seed(task, sample):
    model = build(task, gate_type="gumbel", gate_noise_prob=1.0)

    def logits(seed):
        torch.manual_seed(seed)
        return model(**sample["net_input"])[0]

    assert torch.equal(logits(1), logits(1))
    assert not torch.allclose(logits(1), logits(2))
    model.eval()
    assert torch.equal(logits(1), logits(2))


def test_the_encoder_and_the_decoder_draw_one_seed_each_for_every_gate_type(task, sample):
    states = []
    for gate_type in ("gumbel", "sharpened", "sigmoid"):
        model = build(task, gate_type=gate_type)
        torch.manual_seed(3)
        model(**sample["net_input"])
        states.append(torch.random.get_rng_state())
    torch.manual_seed(3)
    for _ in range(2):
        torch.empty((), dtype=torch.int64).random_()
    assert all(torch.equal(state, torch.random.get_rng_state()) for state in states)


def test_dropout_scales_what_it_keeps(task, sample):
    model = build(task, decoder_dropout_out=0.5, encoder_layers=2, decoder_layers=2)
    mask = model.decoder._dropout_mask(torch.zeros(30, 40, 7), 2)
    assert mask.shape == (30, 2, 40, 9)
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    # 21,600 coins: a share outside 0.5 +- 0.02 has a probability below 1e-8
    assert abs((mask > 0).double().mean() - 0.5) < 0.02
    assert model.eval().decoder._dropout_mask(torch.zeros(3, 4, 7), 2) is None


@pytest.mark.parametrize("mode", ["soft", "tempered", "hard"])
def test_evaluation_modes_change_the_logits(task, sample, mode):
    auto = build(task, gate_type="gumbel")
    other = build(task, gate_type="gumbel", gate_eval_mode=mode, gate_temperature=0.5)
    other.load_state_dict({k: v for k, v in auto.state_dict().items() if k != "gates.values"})
    expected, _ = auto.eval()(**sample["net_input"])
    logits, _ = other.eval()(**sample["net_input"])
    assert torch.allclose(logits, expected) == (mode == "soft")


STOCK_ARCHITECTURES = {
    "g2lstm": "lstm",
    "g2lstm_iwslt": "lstm_wiseman_iwslt_de_en",
    "g2lstm_wmt": "lstm_luong_wmt_en_de",
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_have_the_stock_sizes(name):
    from fairseq.models import ARCH_CONFIG_REGISTRY

    for given in ({}, {"dropout": 0.37}, {"encoder_embed_dim": 24}):
        stock = Namespace(**given)
        ARCH_CONFIG_REGISTRY[STOCK_ARCHITECTURES[name]](stock)
        options = vars(resolve(Namespace(_name=name, **given)))
        differences = {
            key: (value, options[key])
            for key, value in vars(stock).items()
            if key != "adaptive_softmax_cutoff" and options[key] != value
        }
        assert not differences


def as_namespace(options):
    return Namespace(**options)


def as_dict_config(options):
    from omegaconf import OmegaConf

    return OmegaConf.create(options)


def as_dataclass(options):
    config = G2LSTMConfig()
    for key, value in options.items():
        setattr(config, key, value)
    return config


@pytest.mark.parametrize("kind", [as_namespace, as_dict_config, as_dataclass])
def test_options_may_come_as_namespace_config_or_dataclass(kind):
    options = resolve(kind({"_name": "g2lstm_iwslt", "decoder_hidden_size": 12}))
    assert (options.encoder_embed_dim, options.decoder_hidden_size) == (256, 12)
    assert (options.gate_type, options.encoder_dropout_out) == ("gumbel", 0.0)


def test_the_command_lines_options_reach_the_model(tiny_data, task):
    arguments = ["--arch", "g2lstm_iwslt", "--gate-type", "sharpened", "--gate-temperature", "0.7"]
    cfg = training_config(tiny_data, *arguments)
    assert cfg.generation.temperature == 1.0
    model = task.build_model(cfg.model)
    assert model.gate_settings.gate_type == "sharpened"
    assert model.gate_settings.temperature == 0.7
    assert model.encoder.lstm.hidden_size == 256


BAD_OPTIONS = {
    "zero temperature": ({"gate_temperature": 0.0}, "--gate-temperature must be > 0 and finite, got 0.0"),
    "noise above 1": ({"gate_noise_prob": 1.5}, "--gate-noise-prob must be a probability between 0 and 1, got 1.5"),
    "gate type": ({"gate_type": "binary"}, "--gate-type must be one of gumbel, sharpened, sigmoid, got 'binary'"),
    "sharing": ({"gate_noise_sharing": "epoch"}, "--gate-noise-sharing must be one of step, mask, sequence"),
    "eval mode": ({"gate_eval_mode": "loud"}, "--gate-eval-mode must be one of auto, soft, tempered, hard"),
    "layers": ({"encoder_layers": 2}, "--encoder-layers must equal --decoder-layers.*got 2 and 1"),
    "size": ({"encoder_hidden_size": 0}, "--encoder-hidden-size must be > 0, got 0"),
    "dropout": ({"dropout": -0.1}, "--dropout must be a probability between 0 and 1, got -0.1"),
    "tied sizes": ({"share_decoder_input_output_embed": True}, "--decoder-embed-dim equal to.*got 7 and 9"),
    "attention": ({"decoder_attention": "maybe"}, "--decoder-attention must be 1 or 0, got 'maybe'"),
    "shared dictionaries": (
        {"share_all_embeddings": True, "decoder_out_embed_dim": 7},
        "--share-all-embeddings needs one dictionary.*--joined-dictionary",
    ),
    "architecture": ({"_name": "g2lstm_huge"}, "architecture must be one of .*got 'g2lstm_huge'"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_get_a_sentence(task, case):
    options, sentence = BAD_OPTIONS[case]
    with pytest.raises(ValueError, match=sentence):
        G2LSTMModel.build_model(Namespace(**{"_name": "g2lstm", **SMALL, **options}), task)


def test_missing_embeddings_get_a_sentence(task, tmp_path):
    with pytest.raises(FileNotFoundError, match="--encoder-embed-path must be a file of embeddings, got .*nowhere"):
        build(task, encoder_embed_path=str(tmp_path / "nowhere"))


def test_an_empty_name_of_embeddings_is_none(task):
    build(task, encoder_embed_path="", decoder_embed_path="", share_all_embeddings=False)


def test_embeddings_of_another_size_get_a_sentence(task, tmp_path):
    path = tmp_path / "embeddings"
    path.write_text("1 3\nw1 0.5 0.5 0.5\n")
    with pytest.raises(ValueError, match="--decoder-embed-path must hold vectors of 7 numbers.*got \\[3\\]"):
        build(task, decoder_embed_path=str(path))


def test_pretrained_embeddings_are_taken_and_frozen(task, tmp_path):
    path = tmp_path / "embeddings"
    path.write_text("2 7\nw3 " + " ".join(["0.25"] * 7) + "\nw5 " + " ".join(["-2"] * 7) + "\n")
    model = build(task, encoder_embed_path=str(path), encoder_freeze_embed=True)
    embedding = model.encoder.embed_tokens.weight
    assert not embedding.requires_grad
    assert model.decoder.embed_tokens.weight.requires_grad
    assert torch.equal(embedding[task.source_dictionary.index("w3")], torch.full((7,), 0.25))
    assert torch.equal(embedding[task.source_dictionary.index("w5")], torch.full((7,), -2.0))


def test_the_decoders_embeddings_are_taken_and_frozen_apart(task, tmp_path):
    path = tmp_path / "embeddings"
    path.write_text("1 7\nx3 " + " ".join(["0.25"] * 7) + "\n")
    model = build(task, decoder_embed_path=str(path), decoder_freeze_embed=True)
    embedding = model.decoder.embed_tokens.weight
    assert not embedding.requires_grad and model.encoder.embed_tokens.weight.requires_grad
    assert torch.equal(embedding[task.target_dictionary.index("x3")], torch.full((7,), 0.25))


def test_all_embeddings_may_be_one(task):
    joint = Namespace(source_dictionary=task.source_dictionary, target_dictionary=task.source_dictionary)
    model = build(joint, share_all_embeddings=True, decoder_out_embed_dim=7)
    assert model.encoder.embed_tokens is model.decoder.embed_tokens
    assert not hasattr(model.decoder, "fc_out")


def test_the_gate_values_in_use_survive_half_precision_and_a_state_dict(task):
    model = build(task)
    model.set_gate_values(0.7, 0.1)
    model.half()
    other = build(task)
    other.load_state_dict(model.state_dict())
    assert (other.gate_settings.temperature, other.gate_settings.noise_prob) == (0.7, 0.1)
    assert other.encoder.lstm.temperature == 0.7
    assert other.decoder.layers[0].temperature == 0.7


def test_a_stock_state_dict_gets_the_options_gate_values(task):
    model = build(task, gate_temperature=0.6)
    model.load_state_dict(build_stock(task).state_dict())
    assert model.gate_settings.temperature == 0.6


def test_an_option_changed_after_training_overrules_the_saved_value(task):
    trained = build(task, gate_temperature=0.9, gate_noise_prob=0.2)
    trained.set_gate_values(0.5, 0.05)
    later = build(task, gate_temperature=0.3, gate_noise_prob=0.2)
    later.load_state_dict(trained.state_dict())
    assert (later.gate_settings.temperature, later.gate_settings.noise_prob) == (0.3, 0.05)


def test_a_temperature_of_the_search_leaves_an_adaptive_softmaxs_states_alone(task, sample):
    stock = build_stock(task, criterion="adaptive_loss", adaptive_softmax_cutoff="8,16").eval()
    model = build(task, gate_type="sigmoid", adaptive_softmax_cutoff="8,16").eval()
    model.load_state_dict(stock.state_dict())
    found, expected = (
        SequenceGenerator([m], task.target_dictionary, beam_size=3, temperature=0.5).generate([m], sample)
        for m in (model, stock)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[0]["tokens"].tolist() == theirs[0]["tokens"].tolist()
        torch.testing.assert_close(ours[0]["score"], theirs[0]["score"], rtol=1e-5, atol=1e-5)


def test_an_adaptive_softmax_gives_probabilities_and_in_training_no_gradients_of_them(task, sample):
    model = build(task, adaptive_softmax_cutoff="8,16")
    with pytest.raises(ValueError, match="--adaptive-softmax-cutoff needs --criterion adaptive_loss"):
        model.get_normalized_probs(model(**sample["net_input"]), log_probs=True)
    model.eval()
    lprobs = model.get_normalized_probs(model(**sample["net_input"]), log_probs=True)
    assert lprobs.shape[-1] == len(task.target_dictionary)
    torch.testing.assert_close(lprobs.exp().sum(-1), torch.ones(lprobs.shape[:2]))


def test_a_copy_of_the_model_takes_what_is_loaded_into_it(task):
    import copy
    import pickle

    trained = build(task)
    trained.set_gate_values(0.5, 0.1)
    original = build(task)
    for other in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        other.load_state_dict(trained.state_dict())
        assert other.decoder.layers[0].temperature == 0.5
        assert original.gate_settings.temperature == 0.9


@pytest.mark.parametrize("option", ["decoder_attention", "adaptive_softmax_cutoff"])
def test_options_that_a_checkpoint_brings_are_never_evaluated(task, tmp_path, option):
    code = f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch() or 1"
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} must be"):
        build(task, **{option: code})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["", "1 7\nw1 a b c d e f g\n"])
def test_damaged_embeddings_get_a_sentence(task, tmp_path, text):
    path = tmp_path / "embeddings"
    path.write_text(text)
    with pytest.raises(ValueError, match="--encoder-embed-path must be a text file whose first line is its size"):
        build(task, encoder_embed_path=str(path))
