"""Checkpoints whose weights are stored in integers or factored: written by `compress pack`, read like any other.

A packed weight stands in the checkpoint's model as `packed.NAME.…` in place of NAME: `q` and `scales` (rows in
integers, two of 4 bits in a byte); `left` and `right` (factors), which may be in integers as well, with `left_scales`
and `right_scales`; and `rest`, the rows that are not packed. `packed.meta` is JSON in bytes: the format's version, the
settings, each weight's shape, and a SHA-256 of each tensor.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..quantization import dequantize_rows, is_factored, low_rank_factors, quantize_rows

VERSION = 2  # 1 had no factors in integers
META = "packed.meta"


class Packing(NamedTuple):
    """How a weight is packed.

    name: of the weight. rows: how many of its first rows are packed. bits: 8 or 4, for rows in integers. rank: k, for
    factors. With both, the factors' rows are in integers.
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
        packings: how each is packed; biases, and matrices that a rank makes no smaller, are not factored, and under a
            rank alone stay as they are.
        settings: kept in the checkpoint, for people.

    Returns:
        The state dict to save; what is not packed is shared with the given one.

    Raises:
        ValueError: bits is neither 8 nor 4, or neither bits nor rank is given.
    """
    packed = dict(weights)
    shapes: dict[str, Any] = {}
    shared: dict[Any, dict[str, Tensor]] = {}  # what tied weights are stored as
    for name, rows, bits, rank in packings:
        if bits is None and rank is None:
            raise ValueError(f"give bits or rank for {name}")
        if bits not in (None, 4, 8):
            raise ValueError(f"weights are packed in 8 or 4 bits, got {bits} for {name}")
        weight = weights[name]
        part = weight[:rows].detach().float()
        if rank is not None and not is_factored(part.shape, rank):
            rank = None
            if bits is None:
                continue
        del packed[name]
        shapes[name] = {"shape": list(weight.shape), "rows": rows, "bits": bits, "rank": rank}
        tied = _digest(weight), rows, bits, rank  # by content: written on a GPU they are two equal tensors
        if tied not in shared:
            shared[tied] = {key: tensor.contiguous() for key, tensor in _stored(part, bits, rank).items()}
            if rows < len(weight):
                shared[tied]["rest"] = weight[rows:].detach().clone()
        packed |= {f"packed.{name}.{key}": tensor for key, tensor in shared[tied].items()}
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
    if META in state_dict:
        for name, weight in take_packed(state_dict).items():
            state_dict[name] = restore(weight)


class PackedTensors(NamedTuple):
    """A packed weight as it is stored: its shape (R, C) or (R,), the number of rows packed, the integers' bits or None,
    and its tensors by their names."""

    shape: list[int]
    rows: int
    bits: int | None
    tensors: dict[str, Tensor]

    def as_int8(self) -> dict[str, Tensor]:
        """The tensors with integers of 4 bits unpacked to int8, (rows, columns)."""
        if self.bits != 4:
            return self.tensors
        found = dict(self.tensors)
        for name in ("q", "left", "right"):
            if name in found:
                scales = found["scales" if name == "q" else f"{name}_scales"]
                columns = self.shape[1] if len(self.shape) == 2 else self.rows
                if name == "left":
                    columns = len(found["right_scales"])
                found[name] = _unpack_nibbles(found[name], len(scales) * columns).view(len(scales), columns)
        return found


def take_packed(state_dict: MutableMapping[str, Tensor]) -> dict[str, PackedTensors]:
    """Takes the packed weights out of a state dict, by their names.

    Raises:
        ValueError: the weights are of a later version of the format, incomplete, or not what was written.
    """
    meta = _read_meta(state_dict)
    for key, digest in meta["sha256"].items():
        if key not in state_dict:
            raise ValueError(f"the packed checkpoint is incomplete, it lacks {key}: pack it again")
        if _digest(state_dict[key]) != digest:
            raise ValueError(f"the packed checkpoint is damaged, {key} is not what was written: pack it again")
    found = {}
    for name, how in meta["weights"].items():
        start = f"packed.{name}."
        tensors = {key.removeprefix(start): state_dict.pop(key) for key in list(state_dict) if key.startswith(start)}
        found[name] = PackedTensors(how["shape"], how["rows"], how["bits"], tensors)
    del state_dict[META]
    return found


def restore(packed: PackedTensors) -> Tensor:
    """The weight in float32."""
    stored = packed.as_int8()

    def numbers(name: str, scales: str) -> Tensor:
        return dequantize_rows(stored[name], stored[scales]) if scales in stored else stored[name]

    if "left" in stored:
        part = numbers("left", "left_scales") @ numbers("right", "right_scales")
    else:
        part = numbers("q", "scales").view(packed.rows, *packed.shape[1:])
    return torch.cat([part, stored["rest"].float()]) if "rest" in stored else part


def _read_meta(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
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
    if rank is None:
        assert bits is not None
        q, scales = quantize_rows(part, bits)
        return {"q": q if bits == 8 else _pack_nibbles(q), "scales": scales.reshape(-1)}
    stored = dict(zip(("left", "right"), low_rank_factors(part, rank), strict=True))
    if bits is not None:
        for name in ("left", "right"):
            q, stored[f"{name}_scales"] = quantize_rows(stored[name], bits)
            stored[name] = q if bits == 8 else _pack_nibbles(q)
    return stored


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
