"""The report's numbers as CSV files."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from .report import ModelGates, Shares, is_source, shares, units
from .statistics import BINS, GATES
from .tokens import Token


def write_tables(models: Sequence[ModelGates], folder: Path) -> list[Path]:
    """Writes shares.csv, histograms.csv and units.csv, moves.csv where something is known of a training, and
    tokens.csv and attention.csv where there are chosen sentences.

    Returns:
        the files.
    """
    found = [
        _write(folder / "shares.csv", ("model", "layer", "gate", *_SHARES), _shares(models)),
        _write(folder / "histograms.csv", ("model", "layer", "gate", "from", "to", "gates"), _histograms(models)),
        _write(folder / "units.csv", ("model", "layer", "unit", "gate", *_SHARES), _units(models)),
    ]
    if any(model.moments for model in models):
        columns = ("model", "updates", "layer", "gate", "below_0.1", "above_0.9", "mean")
        found.append(_write(folder / "moves.csv", columns, _moves(models)))
    if any(model.sentences for model in models):
        columns = ("model", "sentence", "layer", "position", "token", "input_mean", "forget_mean")
        found.append(_write(folder / "tokens.csv", columns, _tokens(models)))
    if any(sentence.attention is not None for model in models for sentence in model.sentences):
        columns = ("model", "sentence", "written_position", "written", "source_position", "source", "attention")
        found.append(_write(folder / "attention.csv", columns, _attention(models)))
    return found


Row = Iterable[object]
_SHARES = ("gates", "below_0.1", "above_0.9", "mean")


def _write(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def _number(value: float) -> str:
    return f"{value:.6f}"


def _columns(found: Shares) -> Row:
    return (found.gates, *map(_number, found[1:]))


def _shares(models: Sequence[ModelGates]) -> Iterable[Row]:
    for model in models:
        for place, counted in model.statistics.items():
            for gate in GATES:
                yield (model.name, place.label, gate, *_columns(shares([counted], gate)))
        for gate in GATES:
            yield (model.name, "all layers", gate, *_columns(shares(model.statistics.values(), gate)))


def _histograms(models: Sequence[ModelGates]) -> Iterable[Row]:
    for model in models:
        for place, counted in model.statistics.items():
            for gate, histogram in zip(GATES, counted.histogram.tolist(), strict=True):
                for number, count in enumerate(histogram):
                    yield (model.name, place.label, gate, number / BINS, (number + 1) / BINS, count)


def _units(models: Sequence[ModelGates]) -> Iterable[Row]:
    for model in models:
        for gate in GATES:
            for unit in units(model.statistics, gate):
                yield (model.name, unit.place.label, unit.number, gate, *_columns(unit.shares))


def _moves(models: Sequence[ModelGates]) -> Iterable[Row]:
    for model in models:
        for moment in model.moments:
            numbers = map(_number, (moment.low, moment.high, moment.mean))
            yield (model.name, moment.updates, moment.place.label, moment.gate, *numbers)


def _tokens(models: Sequence[ModelGates]) -> Iterable[Row]:
    for model in models:
        for sentence in model.sentences:
            for place, gates in sentence.gates.items():
                tokens = sentence.source if is_source(place) else sentence.target
                means = zip(tokens, *(values.mean(1) for values in gates), strict=True)
                for position, (token, *both) in enumerate(means):
                    yield (model.name, sentence.number, place.label, position, _text(token), *map(_number, both))


def _attention(models: Sequence[ModelGates]) -> Iterable[Row]:
    for model in models:
        for sentence in model.sentences:
            if sentence.attention is None:
                continue
            for i, (written, row) in enumerate(zip(sentence.written, sentence.attention.tolist(), strict=True)):
                for j, (source, weight) in enumerate(zip(sentence.source, row, strict=True)):
                    yield (model.name, sentence.number, i, _text(written), j, _text(source), _number(weight))


def _text(token: Token) -> str:
    return ("+" if token.joined else "") + token.text
