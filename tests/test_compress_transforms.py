"""Rounding, clipping, low rank and integers against their definitions, and which weights they are for."""

import math

import pytest
import torch
from torch import Tensor

from fairseq_g2lstm.compress import Selection, parse
from fairseq_g2lstm.quantization import dequantize_rows, quantize_rows


def matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rounding_gives_the_nearest_point_of_the_grid():
    weights = torch.tensor([[0.24, 0.26, -0.74, 1.9]])
    torch.testing.assert_close(parse("round:0.5").apply(weights), torch.tensor([[0.0, 0.5, -0.5, 2.0]]))


def test_clipping_keeps_to_the_limit_on_the_grid():
    weights = torch.tensor([[0.24, 0.9, -3.0]])
    torch.testing.assert_close(parse("clip:0.2:0.6").apply(weights), torch.tensor([[0.2, 0.6, -0.6]]))
    # 0.5 lies on no point of a grid of 0.2: its last point inside is 0.4
    torch.testing.assert_close(parse("clip:0.2:0.5").apply(weights), torch.tensor([[0.2, 0.4, -0.4]]))


def test_low_rank_is_the_nearest_matrix_of_that_rank():
    weights = matrix(8, 5)
    found = parse("rank:2").apply(weights)
    assert torch.linalg.matrix_rank(found) == 2
    singular = torch.linalg.svdvals(weights)
    # Eckart and Young: the distance is that of the singular values left out
    torch.testing.assert_close((weights - found).norm(), singular[2:].norm())


def test_biases_and_ranks_that_save_nothing_are_left_by_low_rank():
    weights, bias = matrix(8, 5), matrix(8)
    # 4 (8 + 5) numbers would be more than 8 x 5
    assert torch.equal(parse("rank:4").apply(weights), weights)
    assert torch.equal(parse("rank:1").apply(bias), bias)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_integers_are_within_half_a_step_of_their_rows_scale(bits: int):
    weights = matrix(7, 33) * torch.logspace(-3, 3, 7)[:, None]
    q, scales = quantize_rows(weights, bits)
    assert q.dtype == torch.int8 and q.abs().max() == 2 ** (bits - 1) - 1
    assert ((dequantize_rows(q, scales) - weights).abs() <= scales[:, None] * 0.5001).all()
    assert torch.equal(parse(f"int:{bits}").apply(weights), dequantize_rows(q, scales))


def test_rows_of_zeros_stay_zeros():
    weights = torch.zeros(3, 4)
    assert torch.equal(parse("int:4").apply(weights), weights)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("float32", 4 * 6 * 10),
        ("int:8", 6 * 10 + 4 * 6),
        ("int:4", 6 * 10 // 2 + 4 * 6),
        ("rank:2", 4 * 2 * (6 + 10)),
        ("rank:9", 4 * 6 * 10),
        ("rank:2+int:8", 2 * (6 + 10) + 4 * (6 + 2)),
        ("rank:9+int:4", 6 * 10 // 2 + 4 * 6),
        # levels -2 to 2 in steps of 0.5: 9 of them, 4 bits each, and step and offset
        ("round:0.5", 6 * 10 // 2 + 8),
        ("clip:0.5:0.5", math.ceil(6 * 10 * 2 / 8) + 8),
    ],
)
def test_stored_bytes_are_counted(name: str, expected: int):
    weights = torch.linspace(-2, 2, 60).view(6, 10)
    assert parse(name).bytes(weights) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("round", "got 'round'"),
        ("round:0", "numbers of 'round:0' must be > 0"),
        ("round:x", "numbers of 'round:x' must be > 0"),
        ("clip:0.1", "got 'clip:0.1'"),
        ("clip:0.1:nan", "must be > 0"),
        ("rank:0", "must be an integer, at least 1"),
        ("rank:1.5", "must be an integer, at least 1"),
        ("int:9", "must be an integer, 2 to 8"),
        ("float16", "must be float32, round:STEP, clip:STEP:LIMIT, rank:K, int:BITS or .*, got 'float16'"),
        ("rank:0+int:8", "must be an integer, at least 1"),
        ("rank:2+int:9", "must be an integer, 2 to 8"),
        ("int:8+rank:2", "got 'int:8.rank:2'"),
    ],
)
def test_a_wrong_name_is_refused_with_a_sentence(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse(name)


WEIGHTS = {
    "encoder.embed_tokens.weight": (9, 4),
    "encoder.lstm.weight_ih_l0": (12, 4),
    "encoder.lstm.weight_hh_l0_reverse": (12, 3),
    "encoder.lstm.bias_hh_l0": (12,),
    "decoder.layers.10.weight_hh": (12, 3),
    "decoder.layers.0.bias_ih": (12,),
    "decoder.attention.input_proj.weight": (3, 3),
    "decoder.fc_out.weight": (9, 3),
}


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (
            Selection(),
            {"encoder.lstm.weight_ih_l0": 6, "encoder.lstm.weight_hh_l0_reverse": 6, "decoder.layers.10.weight_hh": 6},
        ),
        (Selection("all", ("ih",), True), {"encoder.lstm.weight_ih_l0": 12, "decoder.layers.0.bias_ih": 12}),
        (
            Selection("all", ("ih",), others=("embeddings", "output", "projections")),
            {
                "encoder.embed_tokens.weight": 9,
                "encoder.lstm.weight_ih_l0": 12,
                "decoder.attention.input_proj.weight": 3,
                "decoder.fc_out.weight": 9,
            },
        ),
        (
            Selection(matrices=("hh",), biases=True),
            {"encoder.lstm.weight_hh_l0_reverse": 6, "encoder.lstm.bias_hh_l0": 6, "decoder.layers.10.weight_hh": 6},
        ),
    ],
)
def test_a_selection_names_rows_of_layers_and_what_is_asked_for(selection: Selection, expected: dict[str, int]):
    weights = {name: torch.zeros(shape) for name, shape in WEIGHTS.items()}
    assert {part.name: part.rows for part in selection.parts(weights)} == expected


@pytest.mark.parametrize("copied", [False, True])
def test_tied_embeddings_are_one_part(copied: bool):
    weight = matrix(9, 4)
    first, second = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
    weights = {first: weight, second: weight.clone() if copied else weight}
    assert [part.name for part in Selection(others=("embeddings",)).parts(weights)] == [first]
    weights[second] = matrix(9, 4, seed=1)
    assert len(list(Selection(others=("embeddings",)).parts(weights))) == 2


@pytest.mark.parametrize("options", [{"gates": "output"}, {"matrices": ()}, {"matrices": ("xx",)}, {"others": ("x",)}])
def test_a_wrong_selection_is_refused_with_a_sentence(options: dict):
    with pytest.raises(ValueError, match="must be"):
        Selection(**options)
