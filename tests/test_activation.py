"""Activation regularisation against its formula, and what the criterion logs under it."""

from types import SimpleNamespace

import pytest
import torch
from test_language_model import build, make_task, text

from fairseq_g2lstm.criterions import G2LSTMCrossEntropyCriterion


def criterion(alpha: float, beta: float, sentence_avg: bool = False) -> G2LSTMCrossEntropyCriterion:
    config = SimpleNamespace(
        _name="g2lstm_cross_entropy", sentence_avg=sentence_avg, activation_reg=alpha, temporal_activation_reg=beta
    )
    return G2LSTMCrossEntropyCriterion.build_criterion(config, make_task())


def sample_of(lengths: list[int], rows_without: int = 0) -> dict:
    """A batch, with rows of padding alone at its end, which --pad-to-fixed-bsz adds without lengths."""
    n_rows = len(lengths) + rows_without
    tokens, target = text(n_rows, 6), text(n_rows, 6).roll(-1, 1)
    padding = torch.arange(6) >= torch.tensor(lengths + [0] * rows_without)[:, None]
    tokens, target = tokens.masked_fill(padding, 1), target.masked_fill(padding, 1)
    net_input = {"src_tokens": tokens, "src_lengths": torch.tensor(lengths)}
    return {"net_input": net_input, "target": target, "ntokens": sum(lengths), "nsentences": len(lengths)}


@pytest.mark.parametrize("sentence_avg", [False, True])
@pytest.mark.parametrize(("lengths", "rows_without"), [([6, 6, 6], 0), ([6, 4, 1], 0), ([6, 4], 2), ([3], 1)])
def test_the_penalty_is_the_formulas_without_padding(lengths: list[int], rows_without: int, sentence_avg: bool):
    model, sample = build(decoder_dropout_out=0.4).train(), sample_of(lengths, rows_without)
    torch.manual_seed(7)
    plain, size, log = criterion(0, 0, sentence_avg)(model, sample)
    torch.manual_seed(7)
    _, extra = model(**sample["net_input"])
    torch.manual_seed(7)
    found, found_size, found_log = criterion(2.0, 3.0, sentence_avg)(model, sample)
    outputs, dropped = (extra[name].transpose(0, 1)[: len(lengths)] for name in ("outputs", "dropped_outputs"))
    sizes = torch.cat([row[:n].flatten() for row, n in zip(dropped, lengths, strict=True)]).square().mean()
    changes = torch.cat([(row[1:n] - row[: n - 1]).flatten() for row, n in zip(outputs, lengths, strict=True)])
    expected = plain + size * (2 * sizes + 3 * changes.square().mean())
    torch.testing.assert_close(found, expected)
    assert found_size == size
    assert found_log["loss"] == log["loss"] and found_log["ntokens"] == log["ntokens"]


def test_evaluation_is_without_it():
    model, sample = build().eval(), sample_of([6, 6])
    assert criterion(2.0, 3.0)(model, sample)[0] == criterion(0, 0)(model, sample)[0]


def test_it_pulls_on_the_weights():
    model, sample = build(decoder_dropout_out=0.0).train(), sample_of([6, 6])
    weight = model.decoder.cells()[-1].weight_hh
    (plain,) = torch.autograd.grad(criterion(0, 0)(model, sample)[0], [weight])
    (pulled,) = torch.autograd.grad(criterion(2.0, 1.0)(model, sample)[0], [weight])
    assert not torch.allclose(plain, pulled)
