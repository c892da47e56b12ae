"""What is done to each part of a model: its weights and bytes then."""

from collections.abc import Mapping

from torch import Tensor

from .parts import Part, Selection
from .transforms import Transform, parse

Plan = Mapping[Part, Transform]
"""A transform for each part; parts that it leaves out stay as they are."""


def uniform_plan(weights: Mapping[str, Tensor], transform: Transform, selection: Selection) -> Plan:
    """The same transform for every part of a selection.

    Args:
        weights: the model's state dict.
    """
    return dict.fromkeys(selection.parts(weights), transform)


def compressed(weights: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """The weights that a plan changes, as the model would read them.

    Args:
        weights: the model's state dict.

    Returns:
        By name, copies of the changed weights; rows outside the parts are as they were.
    """
    changed = {}
    for part, transform in plan.items():
        weight = weights[part.name].clone()
        weight[: part.rows] = transform.apply(weight[: part.rows]).to(weight.dtype)
        changed[part.name] = weight
    return changed


def part_bytes(weights: Mapping[str, Tensor], part: Part, transform: Transform | None = None) -> int:
    """Bytes that a part takes stored by a transform, by None in float32."""
    return (transform or parse("float32")).bytes(weights[part.name][: part.rows])


def plan_bytes(weights: Mapping[str, Tensor], plan: Plan) -> int:
    """Bytes of all parts of a plan."""
    return sum(part_bytes(weights, part, transform) for part, transform in plan.items())
