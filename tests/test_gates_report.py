"""The gates' report: its numbers against a direct computation, what it shows of sentences, and what it refuses."""

import base64
import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_module, train_in_process, train_options
from fairseq.data import indexed_dataset
from fairseq.sequence_generator import SequenceGenerator
from gate_models import DirectModel, spread
from lm_runs import train_lm

from fairseq_g2lstm import ops
from fairseq_g2lstm.checkpoints import read_checkpoint, write_checkpoint
from fairseq_g2lstm.gates import GATES, pictures
from fairseq_g2lstm.gates import __main__ as command
from fairseq_g2lstm.gates.moves import moments
from fairseq_g2lstm.gates.page import render
from fairseq_g2lstm.gates.report import ModelGates
from fairseq_g2lstm.gates.tokens import readable, sentence
from fairseq_g2lstm.gates.walk import Reader
from fairseq_g2lstm.loading import load_model

TEMPERATURE = 0.6
N_READ = 30  # of the 40 sentences of the split
UNITS = 16


@pytest.fixture(scope="module")
def models(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sharpened and a stock model, each in a folder of its name."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for name, arch, options in (
        ("sharpened", "g2lstm", ["--gate-type", "sharpened", "--gate-temperature", TEMPERATURE]),
        ("stock", "lstm", []),
    ):
        sizes = ["--encoder-bidirectional", "--disable-validation", "--max-update", 60]
        train_in_process(train_options(tiny_data, folder / "trained" / name, arch, *sizes, *options))
        made[name] = spread(folder / "trained" / name / "checkpoint_last.pt", folder / name / "checkpoint_best.pt", 4)
    return made


@pytest.fixture(scope="module")
def report(models: dict[str, Path], tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report of both models on the first sentences of the test set, three of them token by token."""
    folder = tmp_path_factory.mktemp("report")
    options = ["--max-sentences", N_READ, "--sentences", 3, 17, 4]
    assert run(*models.values(), tiny_data, "--out", folder, *options) == 0
    return folder


@pytest.fixture(scope="module")
def language_model(tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    trained = train_lm(tiny_text, folder / "trained", "--max-epoch", 1)
    return spread(trained / "checkpoint_last.pt", folder / "lm" / "checkpoint_best.pt", 4)


def run(*arguments: object) -> int:
    return command.main([str(argument) for argument in arguments])


def data_of(folder: Path) -> dict:
    """What the page's script reads."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(data)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def direct_translation(checkpoint: Path, data: Path, temperature: float) -> dict[str, list[torch.Tensor]]:
    """All gates of the first sentences by place, input and forget gates apart: (tokens, H) each."""
    _, task = load_model(checkpoint, data)
    task.load_dataset("test")
    model, found = DirectModel(checkpoint, temperature), {}
    for number in range(N_READ):
        item = task.dataset("test")[number]
        gates = model.translate(item["source"], torch.cat((item["target"][-1:], item["target"][:-1])))
        for place in gates.keys() - {"attention"}:
            found.setdefault(place, []).append(gates[place])
    return {place: [torch.cat(kind) for kind in zip(*gates, strict=True)] for place, gates in found.items()}


def assert_shares(found: dict, gates: torch.Tensor) -> None:
    assert found["gates"] == gates.numel()
    # of some thousands of gates one may lie across a line in float32
    assert found["low"] == pytest.approx((gates < 0.1).double().mean().item(), abs=5e-4)
    assert found["high"] == pytest.approx((gates > 0.9).double().mean().item(), abs=5e-4)
    assert found["mean"] == pytest.approx(gates.mean().item(), abs=1e-5)


def assert_histogram(found: list[int], gates: torch.Tensor) -> None:
    edges = np.linspace(0, 1, 51)
    expected = np.histogram(gates.numpy(), edges)[0]
    near = (gates.flatten()[:, None] - torch.from_numpy(edges[1:-1])).abs().lt(1e-5).sum().item()
    assert sum(found) == gates.numel() and np.abs(np.array(found) - expected).sum() <= 2 * near


@pytest.mark.parametrize(("name", "temperature"), [("sharpened", TEMPERATURE), ("stock", 1.0)])
def test_the_statistics_are_those_of_a_loop_over_the_sentences(report, models, tiny_data, name, temperature):
    data = data_of(report)
    (model,) = [model for model in data["models"] if model["name"] == name]
    direct = direct_translation(models[name], tiny_data, temperature)
    assert [place["label"] for place in data["places"]] == [
        "encoder, layer 1", "encoder, layer 1, backward", "decoder, layer 1",
    ]  # fmt: skip
    for number, gate in enumerate(GATES):
        everything = []
        for index, place in enumerate(data["places"]):
            found, gates = model["places"][str(index)][gate], direct[place["label"]][number]
            assert_shares(found, gates)
            assert_histogram(found["histogram"], gates)
            assert 0.02 < found["low"] < 0.98 and 0.02 < found["high"] < 0.98  # there is something to get wrong
            everything.append(gates)
        assert_shares(model["all"][gate], torch.cat(everything))


def test_the_statistics_are_those_of_the_reference(report, models, tiny_data):
    with ops.use_reference():
        statistics, _ = Reader(models["sharpened"], tiny_data, "test").read(N_READ)
    model = data_of(report)["models"][0]
    for index, counted in enumerate(statistics.values()):
        for gate in GATES:
            found = model["places"][str(index)][gate]
            assert found["low"] == pytest.approx(counted.share_low(gate), abs=5e-4)
            assert found["high"] == pytest.approx(counted.share_high(gate), abs=5e-4)
            assert found["mean"] == pytest.approx(counted.mean(gate), abs=1e-6)


def test_the_listed_units_are_the_extremes_of_a_direct_ranking(report, models, tiny_data):
    data = data_of(report)
    direct = direct_translation(models["sharpened"], tiny_data, TEMPERATURE)
    for number, gate in enumerate(GATES):
        decided = {
            (index, unit): share
            for index, place in enumerate(data["places"])
            for unit, share in enumerate(
                ((direct[place["label"]][number] - 0.5).abs() > 0.4).double().mean(0).tolist()
            )
        }
        ranked = sorted(decided.values())
        units = data["models"][0]["units"][gate]
        for listed, expected in ((units["most"], ranked[:-7:-1]), (units["least"], ranked[:6])):
            found = [unit["low"] + unit["high"] for unit in listed]
            # a unit has one gate a token: some 200
            assert found == pytest.approx(expected, abs=0.01)
            shares = [decided[unit["place"], unit["unit"]] for unit in listed]
            assert found == pytest.approx(shares, abs=0.01)
        assert ranked[-1] > ranked[0] + 0.2


@pytest.mark.parametrize(("name", "temperature"), [("sharpened", TEMPERATURE), ("stock", 1.0)])
def test_each_tokens_gates_and_attention_are_those_of_a_direct_computation(
    report, models, tiny_data, name, temperature
):
    data = data_of(report)
    index = [model["name"] for model in data["models"]].index(name)
    _, task = load_model(models[name], tiny_data)
    task.load_dataset("test")
    direct = DirectModel(models[name], temperature)
    assert [shown["number"] for shown in data["sentences"]] == [3, 17, 4]
    for shown in data["sentences"]:
        item, found = task.dataset("test")[shown["number"]], shown["models"][index]
        source, target = task.source_dictionary, task.target_dictionary
        assert shown["text"] == source.string(item["source"])
        assert shown["reference"] == target.string(item["target"])
        assert [token["text"] for token in found["source"]] == [*shown["text"].split(), "⟨end⟩"]
        assert found["target"][0]["text"] == "⟨start⟩" and found["written"][-1]["text"] == "⟨end⟩"
        words = [token["text"] for token in found["target"][1:]]
        assert words == [token["text"] for token in found["written"][:-1]]
        read = torch.tensor([target.eos(), *(target.index(word) for word in words)])
        expected = direct.translate(item["source"], read)
        for place, label in enumerate(place["label"] for place in data["places"]):
            gates = found["gates"][str(place)]
            assert gates["units"] == UNITS
            for gate, values in zip(GATES, expected[label], strict=True):
                # a byte a gate, which lies at most half a step away
                np.testing.assert_allclose(unpacked(gates[gate], UNITS), values.numpy(), atol=0.5 / 255 + 1e-4)
        attention = unpacked(found["attention"], len(item["source"]))
        np.testing.assert_allclose(attention, expected["attention"].numpy(), atol=0.5 / 255 + 1e-4)


def unpacked(text: str, width: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, width) / 255


def test_the_translation_is_fairseqs_with_the_given_beam(models, tiny_data):
    reader = Reader(models["sharpened"], tiny_data, "test")
    model, task = load_model(models["sharpened"], tiny_data)
    task.load_dataset("test")
    for beam in (1, 5):
        generator = SequenceGenerator([model], task.target_dictionary, beam_size=beam)
        _, sentences = reader.read(N_READ, [0, 9], beam)
        for shown in sentences:
            sample = task.dataset("test").collater([task.dataset("test")[shown.number]])
            best = generator.generate([model], sample)[0][0]["tokens"]
            assert sentence(shown.written) == task.target_dictionary.string(best)


def test_a_model_trained_with_padded_lengths_shows_its_sentences_without(models, tiny_data, tmp_path):
    state = read_checkpoint(models["sharpened"])
    state["cfg"]["task"]["required_seq_len_multiple"] = 8
    write_checkpoint(state, tmp_path / "padded.pt")
    checkpoints = (tmp_path / "padded.pt", models["sharpened"])
    both = [Reader(path, tiny_data, "test").read(N_READ, [0, 9])[1] for path in checkpoints]
    for found, expected in zip(*both, strict=True):
        assert (found.source, found.target, found.written) == (expected.source, expected.target, expected.written)
        assert np.array_equal(found.attention, expected.attention)
        assert all(np.array_equal(found.gates[place], gates) for place, gates in expected.gates.items())


def test_the_tables_say_what_the_page_says(report):
    data = data_of(report)
    labels = [place["label"] for place in data["places"]]
    shares = {(row["model"], row["layer"], row["gate"]): row for row in rows_of(report / "shares.csv")}
    bins: dict[tuple[str, str, str], list[int]] = {}
    for row in rows_of(report / "histograms.csv"):
        bins.setdefault((row["model"], row["layer"], row["gate"]), []).append(int(row["gates"]))
    for model in data["models"]:
        for gate in GATES:
            for index, label in enumerate(labels):
                found = model["places"][str(index)][gate]
                assert bins[model["name"], label, gate] == found["histogram"]
                row = shares[model["name"], label, gate]
                assert int(row["gates"]) == found["gates"]
                numbers = [float(row[name]) for name in ("below_0.1", "above_0.9", "mean")]
                assert numbers == pytest.approx([found[name] for name in ("low", "high", "mean")], abs=1e-6)
            whole = shares[model["name"], "all layers", gate]
            assert float(whole["below_0.1"]) == pytest.approx(model["all"][gate]["low"], abs=1e-6)
    assert len(rows_of(report / "units.csv")) == 2 * 2 * 3 * UNITS
    tokens = [row for row in rows_of(report / "tokens.csv") if (row["model"], row["sentence"]) == ("stock", "17")]
    shown = data["sentences"][1]["models"][1]
    for index, (label, side) in enumerate(zip(labels, ("source", "source", "target"), strict=True)):
        rows = [row for row in tokens if row["layer"] == label]
        assert [row["token"] for row in rows] == [token["text"] for token in shown[side]]
        for gate in GATES:
            means = unpacked(shown["gates"][str(index)][gate], UNITS).mean(1)
            np.testing.assert_allclose([float(row[f"{gate}_mean"]) for row in rows], means, atol=0.5 / 255)
    attention = [row for row in rows_of(report / "attention.csv") if (row["model"], row["sentence"]) == ("stock", "17")]
    assert len(attention) == len(shown["written"]) * len(shown["source"])
    sums: dict[str, float] = {}
    for row in attention:
        sums[row["written_position"]] = sums.get(row["written_position"], 0.0) + float(row["attention"])
    assert list(sums.values()) == pytest.approx([1.0] * len(shown["written"]), abs=1e-4)


def test_there_is_a_picture_of_the_histograms_and_of_each_sentence(report):
    pytest.importorskip("matplotlib", reason="draws with matplotlib, which is not installed")
    names = {path.name for path in report.glob("*.png")}
    expected = {f"sentence-{number}-{name}.png" for number in (3, 4, 17) for name in ("sharpened", "stock")}
    assert names == expected | {"histograms.png"}
    for path in report.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_the_pictures_axes_hold_all_that_is_drawn(models, tiny_data):
    pytest.importorskip("matplotlib", reason="draws with matplotlib, which is not installed")
    shown = []
    for name, checkpoint in models.items():
        reader = Reader(checkpoint, tiny_data, "test")
        statistics, _ = reader.read(10)
        line = [moment for n in (0, 50, 90) for moment in moments(n, statistics)]
        growing = [moment._replace(high=number / 100) for number, moment in enumerate(line)]
        shown.append(ModelGates(name, reader.gate_settings, 90, statistics, [], growing))
    for figure in (pictures._moves(shown), pictures._histograms(shown)):
        for axis in figure.axes:
            (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
            drawn = [line.get_xydata() for line in axis.lines]
            for outline in axis.patches:
                if hasattr(outline, "get_data"):
                    values, edges, _ = outline.get_data()
                    drawn.append(np.stack((edges[1:], values), 1))
            assert len(drawn) == 2
            for x, y in np.concatenate(drawn):
                assert left <= x <= right and bottom <= y <= top
        assert [text.get_text() for text in figure.legends[0].get_texts()] == list(models)


def test_the_picture_of_a_long_sentence_shows_its_beginning(models, tiny_data, monkeypatch):
    pytest.importorskip("matplotlib", reason="draws with matplotlib, which is not installed")
    _, (shown,) = Reader(models["sharpened"], tiny_data, "test").read(10, [3])
    n_tokens = max(map(len, (shown.source, shown.target, shown.written)))
    assert pictures._sentence(shown, [shown], "a model").get_suptitle() == "a model, sentence 3"
    monkeypatch.setattr(pictures, "_MOST_TOKENS", 4)
    figure = pictures._sentence(shown, [shown], "a model")
    assert figure.get_suptitle() == f"a model, sentence 3, the first 4 of {n_tokens} tokens"
    drawn = [axis.images[0].get_array().shape for part in figure.subfigs for axis in part.axes]
    assert len(drawn) == 5 and all(shape[1] == min(4, len(shown.source)) for shape in drawn[:2])
    assert drawn[-1] == (min(4, len(shown.written)), min(4, len(shown.source)))


def test_without_matplotlib_the_page_and_the_tables_are_written_all_the_same(
    models, tiny_data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(models["stock"], tiny_data, "--out", tmp_path, "--max-sentences", 8) == 0
    said = capsys.readouterr().err
    assert "no pictures: matplotlib is not installed" in said and "drawing" not in said
    assert (tmp_path / "report.html").exists() and (tmp_path / "shares.csv").exists()
    assert not list(tmp_path.glob("*.png"))


# Language models


def test_a_language_models_numbers_are_those_of_a_loop_over_the_text(language_model, tiny_text, tmp_path, monkeypatch):
    monkeypatch.setattr("fairseq_g2lstm.gates.walk._BLOCK", 17)  # many blocks, some of them cut at the sentences
    n_read, chosen = 20, [4, 0, 19]
    assert run(
        language_model, tiny_text, "--out", tmp_path, "--max-sentences", n_read, "--sentences", *chosen
    ) == 0  # fmt: skip
    _, task = load_model(language_model, tiny_text)
    task.load_dataset("test")
    lines, line = [], []
    for token in task.dataset("test").tokens.tolist():
        line.append(token)
        if token == task.dictionary.eos():
            lines.append(line)
            line = []
    text = [task.dictionary.eos(), *(token for line in lines[:n_read] for token in line)][:-1]
    direct = DirectModel(language_model).read(torch.tensor(text))
    data = data_of(tmp_path)
    assert (data["data"]["n_read"], data["data"]["n_sentences"]) == (n_read, 50)
    assert [place["label"] for place in data["places"]] == ["decoder, layer 1", "decoder, layer 2"]
    for index, label in enumerate(place["label"] for place in data["places"]):
        for gate, gates in zip(GATES, direct[label], strict=True):
            assert_shares(data["models"][0]["places"][str(index)][gate], gates)
            assert_histogram(data["models"][0]["places"][str(index)][gate]["histogram"], gates)
    for number, shown in zip(chosen, data["sentences"], strict=True):
        found = shown["models"][0]
        start = sum(len(line) for line in lines[:number])
        assert [token["text"] for token in found["target"]] == [
            "⟨start⟩", *task.dictionary.string(lines[number]).split()
        ]  # fmt: skip
        assert (found["source"], found["written"], found["attention"], shown["reference"]) == ([], [], None, "")
        for index, label in enumerate(place["label"] for place in data["places"]):
            n_units = found["gates"][str(index)]["units"]
            for gate, gates in zip(GATES, direct[label], strict=True):
                expected = gates[start : start + len(found["target"])]
                values = unpacked(found["gates"][str(index)][gate], n_units)
                np.testing.assert_allclose(values, expected.numpy(), atol=0.5 / 255 + 1e-4)


def test_a_text_without_a_last_line_end_is_read_to_its_end(language_model, tiny_text, monkeypatch):
    reader = Reader(language_model, tiny_text, "test")
    n_sentences = reader.n_sentences
    reader._tokens = reader._tokens[:-1]
    monkeypatch.setattr("fairseq_g2lstm.gates.walk._load_text", lambda *_: reader._tokens)
    cut = Reader(language_model, tiny_text, "test")
    assert cut.n_sentences == n_sentences
    statistics, (shown,) = cut.read(n_sentences, [n_sentences - 1])
    assert {counted.steps for counted in statistics.values()} == {len(reader._tokens)}
    assert len(shown.target) > 1


# Over the training


def test_the_checkpoints_of_a_training_make_its_moves(tiny_data, tmp_path):
    folder = tmp_path / "run"
    options = ["--max-update", 6, "--save-interval-updates", 2, "--disable-validation", "--no-epoch-checkpoints"]
    train_in_process(train_options(tiny_data, folder, "g2lstm", *options))
    assert run(folder / "checkpoint_last.pt", tiny_data, "--out", tmp_path, "--max-sentences", 10, "--moves") == 0
    rows = rows_of(tmp_path / "moves.csv")
    assert sorted({int(row["updates"]) for row in rows}) == [2, 4, 6]
    data = data_of(tmp_path)
    for line in data["models"][0]["moments"]:
        assert [point[0] for point in line["points"]] == [2, 4, 6]
        # the last of them is the checkpoint of the report
        shares = data["models"][0]["places"][str(line["place"])][line["gate"]]
        assert line["points"][-1][1:] == pytest.approx([shares["low"] + shares["high"], shares["mean"]])
    statistics, _ = Reader(folder / "checkpoint_1_2.pt", tiny_data, "test").read(10)
    place, counted = next(iter(statistics.items()))
    (row,) = [r for r in rows if (r["updates"], r["layer"], r["gate"]) == ("2", place.label, "forget")]
    assert float(row["mean"]) == pytest.approx(counted.mean("forget"), abs=1e-6)


def test_the_file_of_a_training_makes_its_moves(models, tiny_data, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoint_best.pt").write_bytes(models["sharpened"].read_bytes())
    numbers = {"module": "decoder", "layer": 0, "reverse": False, "steps": 7, "histogram": [0] * 50}
    records = [
        {"update": update, "gate": gate, "low": update / 1000, "high": 0.25, "mean": mean, **numbers}
        for update, mean in ((100, 0.5), (200, None))
        for gate in GATES
    ]
    (folder / "gates.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert run(folder / "checkpoint_best.pt", tiny_data, "--out", tmp_path, "--max-sentences", 5) == 0
    lines = data_of(tmp_path)["models"][0]["moments"]
    assert [(line["place"], line["gate"]) for line in lines] == [(2, "input"), (2, "forget")]
    for line in lines:
        assert line["points"] == [[100, pytest.approx(0.35), 0.5], [200, pytest.approx(0.45), None]]
    assert (tmp_path / "moves.csv").exists()


# Text from outside


HOSTILE = "</script><script>alert(1)</script>&amp;\"'{{script}}"


def test_no_text_ends_the_pages_data(report):
    data = data_of(report)
    data["models"][0]["name"] = HOSTILE
    data["sentences"][0]["reference"] = HOSTILE + "\u2028<!--"
    data["sentences"][0]["models"][0]["source"][0]["text"] = "{{data}}"
    page = render(data)
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert json.loads(text) == data and "<" not in text
    assert page.count("<script") == page.count("</script>") == 2
    plain = render(data_of(report))
    assert page.replace(text, "") == plain.replace(re.findall(r'id="data">(.*?)</script>', plain, re.DOTALL)[0], "")


def test_the_pages_script_makes_no_markup_of_text(report):
    page = (report / "report.html").read_text(encoding="utf-8")
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "http://", "https://"):
        assert way not in page.replace("http://www.w3.org/2000/svg", ""), way  # a name, not an address


class Symbols(list):
    """A dictionary of these symbols after fairseq's four."""

    def __getitem__(self, number: int) -> str:
        return ["<s>", "<pad>", "</s>", "<unk>", *self][number]

    def eos(self) -> int:
        return 2


def test_pieces_of_words_are_joined():
    dictionary = Symbols(["anst@@", "arr@@", "t", "hut", "@@"])
    tokens = readable(dictionary, [7, 4, 5, 6, 3, 8, 2])
    assert [token.text for token in tokens] == ["hut", "anst", "arr", "t", "<unk>", "@@", "⟨end⟩"]
    assert [token.joined for token in tokens] == [False, False, True, True, False, False, False]
    assert sentence(tokens) == "hut anstarrt <unk> @@"
    started = readable(dictionary, [2, 4, 2], starts=True)
    assert [(token.text, token.joined, token.special) for token in started] == [
        ("⟨start⟩", False, True), ("anst", False, False), ("⟨end⟩", False, True),
    ]  # fmt: skip


def test_pieces_that_mark_a_words_beginning_are_joined_too():
    dictionary = Symbols(["▁an", "st", "▁hut", "▁", "x"])
    tokens = readable(dictionary, [2, 4, 5, 6, 7, 8, 2], starts=True)
    assert [token.text for token in tokens] == ["⟨start⟩", "an", "st", "hut", "▁", "x", "⟨end⟩"]
    assert [token.joined for token in tokens] == [False, False, True, False, False, True, False]


# Size, choice, and what is refused


def test_without_numbers_readable_sentences_are_chosen_evenly(models, tiny_data):
    reader = Reader(models["stock"], tiny_data, "test")
    chosen = reader.choose(6, 40)
    lengths = [len(reader._dataset[number]["source"]) - 1 for number in range(40)]
    fitting = [number for number in range(40) if 6 <= lengths[number] <= 20]
    assert len(chosen) == 6 and set(chosen) <= set(fitting) and chosen == sorted(set(chosen))
    assert (chosen[0], chosen[-1]) == (fitting[0], fitting[-1])
    short = [number for number in range(40) if lengths[number] < 6]
    assert reader.choose(6, short[0] + 1)  # whatever is there, where none is of a good length


def test_too_large_a_page_has_fewer_sentences_or_is_refused(models, tiny_data, tmp_path, monkeypatch, capsys):
    whole = [models["stock"], tiny_data, "--max-sentences", N_READ, "--out"]
    assert run(*whole, tmp_path / "whole") == 0
    size = (tmp_path / "whole" / "report.html").stat().st_size
    monkeypatch.setattr(command, "MAX_BYTES", size - 1)
    assert run(*whole, tmp_path / "smaller") == 0
    counts = [len(data_of(tmp_path / name)["sentences"]) for name in ("whole", "smaller")]
    assert counts == [6, 5] and "shows 5 sentences: more do not fit" in capsys.readouterr().err
    chosen = [shown["number"] for shown in data_of(tmp_path / "whole")["sentences"]]
    assert run(*whole, tmp_path / "refused", "--sentences", *chosen) == 1
    assert "give fewer --sentences, or fewer models" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


def refusal(capsys, *arguments: object) -> str:
    assert run(*arguments) == 1
    return capsys.readouterr().err


def test_what_cannot_be_read_gets_a_sentence(models, tiny_data, tiny_text, language_model, tmp_path, capsys):
    stock, out = models["stock"], ["--out", tmp_path / "out"]
    assert "no checkpoint at" in refusal(capsys, tmp_path / "missing.pt", tiny_data, *out)
    assert "no data folder" in refusal(capsys, stock, tmp_path / "missing", *out)
    assert "no split 'other'" in refusal(capsys, stock, tiny_data, *out, "--split", "other")
    assert "no split 'other'" in refusal(capsys, language_model, tiny_text, *out, "--split", "other")
    error = refusal(capsys, stock, tiny_data, *out, "--sentences", 2, 40)
    assert "sentence 40 is not among the 40 that are read: give numbers from 0 to 39" in error
    assert "does not load with the dictionaries of" in refusal(capsys, stock, tiny_text, *out)
    error = refusal(capsys, stock, models["sharpened"], tiny_data, *out, "--names", "a", "a")
    assert "--names must be 2 different names" in error
    assert "a checkpoint is named twice" in refusal(capsys, stock, stock, tiny_data, *out)
    assert "no checkpoint of an epoch or an update in" in refusal(capsys, stock, tiny_data, *out, "--moves")
    assert not (tmp_path / "out").exists()


def test_a_model_of_other_dictionaries_gets_a_sentence(models, tiny_data, tmp_path, capsys):
    state = read_checkpoint(models["stock"])
    for name, weight in state["model"].items():
        if name.endswith("embed_tokens.weight"):
            state["model"][name] = torch.cat((weight, weight))
    torch.save(state, tmp_path / "other.pt")
    error = refusal(capsys, models["stock"], tmp_path / "other.pt", tiny_data, "--out", tmp_path / "out")
    assert f"{tmp_path / 'other.pt'} does not load with the dictionaries of {tiny_data}" in error


def test_models_that_do_not_read_the_same_get_a_sentence(models, tiny_data, tmp_path, capsys):
    state = read_checkpoint(models["stock"])
    state["cfg"]["task"] |= {"source_lang": "en", "target_lang": "de"}  # whose dictionaries are of one size here
    torch.save(state, tmp_path / "back.pt")
    error = refusal(capsys, models["stock"], tmp_path / "back.pt", tiny_data, "--out", tmp_path / "out")
    assert "do not read the same" in error


def test_an_empty_split_gets_a_sentence(models, tiny_data, language_model, tiny_text, tmp_path, capsys):
    for name, data, checkpoint in (("pairs", tiny_data, models["stock"]), ("text", tiny_text, language_model)):
        folder = tmp_path / name
        folder.mkdir()
        for path in data.iterdir():
            (folder / path.name).symlink_to(path)
        for path in list(folder.glob("test*")):
            path.unlink()
        for prefix in ("test.de-en.de", "test.de-en.en") if name == "pairs" else ("test",):
            builder = indexed_dataset.make_builder(str(folder / f"{prefix}.bin"), impl="mmap", vocab_size=24)
            builder.finalize(str(folder / f"{prefix}.idx"))
        assert "holds no sentence" in refusal(capsys, checkpoint, folder, "--out", tmp_path / "out")


def test_gates_that_are_no_numbers_get_a_sentence(models, tiny_data, tmp_path, capsys):
    state = read_checkpoint(models["stock"])
    state["model"]["decoder.layers.0.bias_ih"][0] = float("nan")
    torch.save(state, tmp_path / "diverged.pt")
    error = refusal(capsys, tmp_path / "diverged.pt", tiny_data, "--out", tmp_path / "out")
    assert "gates of decoder, layer 1 are no numbers" in error


@pytest.mark.parametrize("option", ["--beam", "--max-sentences"])
def test_a_number_below_one_gets_a_sentence(option, tiny_data, capsys):
    with pytest.raises(SystemExit):
        run("checkpoint.pt", tiny_data, "--out", "out", option, "0")
    assert f"argument {option}: must be a whole number >= 1, got 0" in capsys.readouterr().err


def test_the_page_of_the_documents_has_a_row_for_each_option_with_its_default():
    text = (ROOT / "docs" / "gates.md").read_text()
    rows = dict(re.findall(r"^\| `(--[a-z-]+)` \| ([^|]*?) ?\|", text, re.MULTILINE))
    for action in command._parser()._actions:
        if action.option_strings and action.dest != "help":
            default = rows.pop(action.option_strings[-1]).strip("`")
            assert action.default in (None, False) or default == str(action.default)
    assert not rows


def test_the_command_runs_by_itself(models, tiny_data, tmp_path):
    done = run_module(
        "fairseq_g2lstm.gates", models["stock"], tiny_data, "--out", tmp_path, "--max-sentences", 8, "--names", "a b"
    )
    assert done.returncode == 0, done.stderr
    assert f"wrote {tmp_path / 'report.html'}" in done.stdout and "a b: read 8 sentences" in done.stderr
    assert data_of(tmp_path)["models"][0]["name"] == "a b"
