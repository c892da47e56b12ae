"""Checkpoints whose weights are stored in integers or factored: written by `compress pack`, read like any other.

A packed weight stands in the checkpoint's model as `packed.NAME.…` in place of NAME: `q` and `scales` (rows in
integers, two of 4 bits in a byte), `left` and `right` (factors), and `rest`, the rows that are not packed.
`packed.meta` is JSON in bytes: the format's version, the settings, each weight's shape, and a SHA-256 of each tensor.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .quantization import dequantize_rows, is_factored, low_rank_factors, quantize_rows

VERSION = 1
META = "packed.meta"


class Packing(NamedTuple):
    """How a weight is packed.

    name: of the weight. rows: how many of its first rows are packed. bits: 8 or 4, for rows in integers; or
    rank: k, for factors.
    """

    name: str
    rows: int
    bits: int | None = None
    rank: int | None = None


def pack_weights(
    weights: Mapping[str, Tensor], packings: Iterable[Packing], settings: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """A model's state dict with some weights packed.

    Args:
        weights: the state dict.
        packings: how each is packed; biases, and matrices that a rank makes no smaller, stay as they are under a rank.
        settings: kept in the checkpoint, for people.

    Returns:
        The state dict to save; what is not packed is shared with the given one.

    Raises:
        ValueError: bits is neither 8 nor 4, or both bits and rank are given, or neither.
    """
    packed = dict(weights)
    shapes: dict[str, Any] = {}
    for name, rows, bits, rank in packings:
        if (bits is None) == (rank is None):
            raise ValueError(f"give bits or rank for {name}, got {bits} and {rank}")
        if bits not in (None, 4, 8):
            raise ValueError(f"weights are packed in 8 or 4 bits, got {bits} for {name}")
        weight = weights[name]
        part = weight[:rows].detach().float()
        if rank is not None and not is_factored(part.shape, rank):
            continue
        del packed[name]
        shapes[name] = {"shape": list(weight.shape), "rows": rows, "bits": bits, "rank": rank}
        for key, tensor in _stored(part, bits, rank).items():
            packed[f"packed.{name}.{key}"] = tensor.contiguous()
        if rows < len(weight):
            packed[f"packed.{name}.rest"] = weight[rows:].detach().clone()
    meta = {
        "format": "fairseq_g2lstm packed weights",
        "version": VERSION,
        "settings": dict(settings or {}),
        "weights": shapes,
        "sha256": {key: _digest(tensor) for key, tensor in packed.items()},
    }
    packed[META] = torch.frombuffer(bytearray(json.dumps(meta).encode()), dtype=torch.uint8)
    return packed


def unpack_weights(state_dict: MutableMapping[str, Tensor]) -> None:
    """Puts the weights back, in place, in float32; a state dict without packed ones is left as it is.

    Raises:
        ValueError: the weights are of a later version of the format, incomplete, or not what was written.
    """
    if META not in state_dict:
        return
    meta = read_meta(state_dict)
    for key, digest in meta["sha256"].items():
        if key not in state_dict:
            raise ValueError(f"the packed checkpoint is incomplete, it lacks {key}: pack it again")
        if _digest(state_dict[key]) != digest:
            raise ValueError(f"the packed checkpoint is damaged, {key} is not what was written: pack it again")
    for name, how in meta["weights"].items():
        shape, rows = how["shape"], how["rows"]
        stored = {
            key: state_dict.pop(f"packed.{name}.{key}")
            for key in ("q", "scales", "left", "right", "rest")
            if f"packed.{name}.{key}" in state_dict
        }
        part = _restored(stored, [rows, *shape[1:]], how["bits"])
        state_dict[name] = torch.cat([part, stored["rest"].float()]) if "rest" in stored else part
    del state_dict[META]


def read_meta(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `packed.meta` says.

    Raises:
        ValueError: it is damaged, or of a later version of the format.
    """
    try:
        meta = json.loads(bytes(state_dict[META].tolist()).decode())
        version = int(meta["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("the packed checkpoint is damaged, its description cannot be read: pack it again") from error
    if version > VERSION:
        raise ValueError(
            f"the checkpoint is packed in version {version} of the format, this is for {VERSION}: "
            "install a later fairseq_g2lstm"
        )
    return meta


def _stored(part: Tensor, bits: int | None, rank: int | None) -> dict[str, Tensor]:
    if rank is not None:
        left, right = low_rank_factors(part, rank)
        return {"left": left, "right": right}
    assert bits is not None
    q, scales = quantize_rows(part, bits)
    return {"q": q if bits == 8 else _pack_nibbles(q), "scales": scales.reshape(-1)}


def _restored(stored: Mapping[str, Tensor], shape: list[int], bits: int | None) -> Tensor:
    if "left" in stored:
        return stored["left"] @ stored["right"]
    q = stored["q"] if bits == 8 else _unpack_nibbles(stored["q"], math.prod(shape))
    scales = stored["scales"]
    return dequantize_rows(q.view(shape), scales if len(shape) == 2 else scales[0])


def _pack_nibbles(q: Tensor) -> Tensor:
    """Integers of -8 to 7, two in a byte, the first in its low half."""
    flat = (q.flatten() + 8).to(torch.uint8)
    if flat.numel() % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    return flat[0::2] | (flat[1::2] << 4)


def _unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    both = torch.stack([packed & 15, packed >> 4], 1).flatten()[:count]
    return both.to(torch.int8) - 8


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().flatten()
    digest = hashlib.sha256(f"{data.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(data.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
