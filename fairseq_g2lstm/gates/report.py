"""What the report says, as plain data: the same numbers for the page, the tables and the pictures."""

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..settings import GateSettings
from .moves import Moment
from .statistics import GATES, GateStatistics, Place
from .tokens import Token, sentence
from .walk import SentenceGates

LISTED_UNITS = 6  # of each model and gate at either end
_DRAWN_MOMENTS = 200  # of each line over the training


@dataclass(frozen=True)
class ModelGates:
    """What was seen of one model.

    Attributes:
        name: unlike the other models'.
        settings: the gates'.
        updates: that it was trained for, or None.
        statistics: by place.
        sentences: the chosen ones, the same in all models of a report.
        moments: over its training, in the order of the updates; empty where nothing is known of it.
    """

    name: str
    settings: GateSettings
    updates: int | None
    statistics: dict[Place, GateStatistics]
    sentences: list[SentenceGates]
    moments: list[Moment] = field(default_factory=list)


@dataclass(frozen=True)
class DataSet:
    """What the models read: a split of so many sentences, the first of them, and its languages, source first."""

    split: str
    n_sentences: int
    n_read: int
    languages: tuple[str, ...]


class Shares(NamedTuple):
    """Of so many gates the shares below 0.1 and above 0.9, and the mean."""

    gates: int
    low: float
    high: float
    mean: float

    @property
    def decided(self) -> float:
        """The share within 0.1 of either end."""
        return self.low + self.high


class Unit(NamedTuple):
    """A unit of a layer, its number from 0, and its gates."""

    place: Place
    number: int
    shares: Shares


def shares(statistics: Iterable[GateStatistics], gate: str) -> Shares:
    """The shares of the gates ("input" or "forget") of one place or of several together."""
    number = GATES.index(gate)
    gates, low, high, total = 0, 0, 0, 0.0
    for counted in statistics:
        gates += counted.steps * counted.low.shape[1]
        low += int(counted.low[number].sum())
        high += int(counted.high[number].sum())
        total += float(counted.sum[number].sum())
    return Shares(gates, low / gates, high / gates, total / gates)


def units(statistics: dict[Place, GateStatistics], gate: str) -> list[Unit]:
    """All units, those first whose gates are the most often within 0.1 of an end; among equals the further from 0.5."""
    found = [
        Unit(place, number, Shares(counted.steps, *map(float, row)))
        for place, counted in statistics.items()
        for number, row in enumerate(
            zip(counted.unit_low(gate), counted.unit_high(gate), counted.unit_mean(gate), strict=True)
        )
    ]
    return sorted(found, key=lambda unit: (-unit.shares.decided, -abs(unit.shares.mean - 0.5)))


def places(models: Sequence[ModelGates]) -> list[Place]:
    """The places of all models, each once, in the order in which the models compute."""
    return list(dict.fromkeys(place for model in models for place in model.statistics))


def is_source(place: Place) -> bool:
    """Whether a layer reads the source, and not what the decoder writes or the text."""
    return place.module.split(".")[0] == "encoder"


def as_json(models: Sequence[ModelGates], data: DataSet) -> dict[str, Any]:
    """The report for the page's script: plain numbers, lists and text, and the hover data in base64, a byte a gate."""
    all_places = places(models)
    return {
        "data": {
            "split": data.split,
            "n_sentences": data.n_sentences,
            "n_read": data.n_read,
            "languages": list(data.languages),
        },
        "places": [{"label": place.label, "source": is_source(place)} for place in all_places],
        "models": [_model(model, all_places) for model in models],
        "sentences": [
            {
                "number": first.number,
                "text": sentence(first.source or first.target),
                "reference": first.reference,
                "models": [_sentence(model.sentences[position], all_places) for model in models],
            }
            for position, first in enumerate(models[0].sentences)
        ],
    }


def _model(model: ModelGates, all_places: list[Place]) -> dict[str, Any]:
    described: dict[str, Any] = {"name": model.name, "gates": describe(model.settings), "updates": model.updates}
    described["places"] = {
        all_places.index(place): {
            gate: {**_shares(shares([counted], gate)), "histogram": counted.histogram[number].tolist()}
            for number, gate in enumerate(GATES)
        }
        for place, counted in model.statistics.items()
    }
    described["all"] = {gate: _shares(shares(model.statistics.values(), gate)) for gate in GATES}
    described["units"] = {}
    for gate in GATES:
        ranked = units(model.statistics, gate)
        n_listed = min(LISTED_UNITS, len(ranked) // 2)
        most, least = ranked[:n_listed], ranked[len(ranked) - n_listed :][::-1]
        described["units"][gate] = {
            end: [
                {"place": all_places.index(unit.place), "unit": unit.number, **_shares(unit.shares)} for unit in listed
            ]
            for end, listed in (("most", most), ("least", least))
        }
    described["moments"] = _moments(model.moments, all_places)
    return described


def describe(settings: GateSettings) -> str:
    """The gates' settings in words."""
    mode = settings.mode(training=False)
    text = f"{settings.gate_type} gates"
    if settings.gate_type != "sigmoid":
        also = " and here" if mode.temperature != 1 else ""
        text += f", temperature {settings.temperature:g} in training{also}"
    return f"{text}, each 0 or 1 here" if mode.hard else text


def _shares(found: Shares) -> dict[str, Any]:
    return found._asdict()


def _moments(moments: list[Moment], all_places: list[Place]) -> list[dict[str, Any]]:
    lines: dict[tuple[Place, str], list[Moment]] = {}
    for moment in moments:
        if moment.place in all_places:
            lines.setdefault((moment.place, moment.gate), []).append(moment)
    drawn = []
    for (place, gate), line in lines.items():
        kept = np.unique(np.linspace(0, len(line) - 1, min(len(line), _DRAWN_MOMENTS)).round().astype(int))
        numbers = [[line[i].updates, line[i].low + line[i].high, line[i].mean] for i in kept]
        points = [[value if math.isfinite(value) else None for value in point] for point in numbers]
        drawn.append({"place": all_places.index(place), "gate": gate, "points": points})
    return drawn


def _sentence(found: SentenceGates, all_places: list[Place]) -> dict[str, Any]:
    return {
        "source": _tokens(found.source),
        "target": _tokens(found.target),
        "written": _tokens(found.written),
        "attention": None if found.attention is None else _bytes(found.attention),
        "gates": {
            all_places.index(place): {
                "units": gates[0].shape[1],
                **{gate: _bytes(values) for gate, values in zip(GATES, gates, strict=True)},
            }
            for place, gates in found.gates.items()
        },
    }


def _tokens(tokens: list[Token]) -> list[dict[str, Any]]:
    return [token._asdict() for token in tokens]


def _bytes(values: np.ndarray) -> str:
    """Numbers from 0 to 1 as 0 to 255."""
    return base64.b64encode((values * 255).round().astype(np.uint8).tobytes()).decode()
