"""The gates' report in a browser: what it shows, pointing and keys, narrow windows, dark colours, text from outside."""

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import run_module, train_in_process, train_options, write_reversal_corpus
from gate_models import spread
from lm_runs import train_lm

from fairseq_g2lstm.gates import GATES
from fairseq_g2lstm.gates.__main__ import main
from fairseq_g2lstm.gates.walk import Reader, SentenceGates

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402

# fairseq takes the corpus apart at spaces
MARKUP = "<script>document.title='hacked'</script>"
IMAGE = "<img/src=x/onerror=document.title='hacked'>"
LINE = f"w1 {MARKUP} pie@@ ce </script> \"quoted\" &amp; {IMAGE} w2"
NAMES = ["<i>sharp</i>", "plain"]
CHOSEN = [0, 5, 12]


def executable(*names: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"{' or '.join(names)} was not found: Debian's packages are chromium and chromium-driver")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator["webdriver.Chrome"]:
    options = webdriver.ChromeOptions()
    options.binary_location = executable("chromium", "google-chrome")
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data-bin of a tiny corpus with markup among its words; the test set's first sentence is full of it."""
    folder = tmp_path_factory.mktemp("markup")
    write_reversal_corpus(folder, {"train": 200, "valid": 20, "test": 20}, seed=3)
    for split in ("train", "test"):
        for language in ("de", "en"):
            path = folder / f"{split}.{language}"
            path.write_text(LINE + "\n" + path.read_text())
    prefixes = [f"--{split}pref={folder / split}" for split in ("train", "valid", "test")]
    done = run_module("fairseq_cli.preprocess", "-s", "de", "-t", "en", *prefixes, "--destdir", folder / "data-bin")
    assert done.returncode == 0, done.stderr
    return folder / "data-bin"


@pytest.fixture(scope="module")
def models(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    made = []
    for arch, options in (("g2lstm", ["--gate-type", "sharpened"]), ("lstm", [])):
        sizes = ["--encoder-bidirectional", "--disable-validation", "--max-update", 30]
        train_in_process(train_options(corpus, folder / arch, arch, *sizes, *options))
        made.append(spread(folder / arch / "checkpoint_last.pt", folder / f"{arch}.pt", 4))
    records = [
        {"update": update, "module": "decoder", "layer": 0, "reverse": False, "gate": gate, "steps": 9, "low": 0.1,
         "high": update / 1000, "mean": 0.5, "histogram": [0] * 50}
        for update in (100, 200, 300) for gate in GATES
    ]  # fmt: skip
    (folder / "gates.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return made


@pytest.fixture(scope="module")
def report(models: list[Path], corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    arguments = [*models, corpus, "--out", folder, "--names", *NAMES, "--sentences", *CHOSEN]
    assert main([str(argument) for argument in arguments]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def sentences(models: list[Path], corpus: Path) -> list[list[SentenceGates]]:
    """The chosen sentences of each model, as they were recorded."""
    return [Reader(checkpoint, corpus, "test").read(20, CHOSEN)[1] for checkpoint in models]


Open = Callable[..., "webdriver.Chrome"]


@pytest.fixture
def opened(browser, report: Path) -> Open:
    """Opens the report, or another page, in a window of a width and a colour scheme."""

    def open_page(width: int = 1280, scheme: str = "light", page: Path = report) -> "webdriver.Chrome":
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        browser.get(page.as_uri())
        return browser

    return open_page


def texts(driver: "webdriver.Chrome", selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)"
    return driver.execute_script(script, selector)


def point_at(driver: "webdriver.Chrome", element: WebElement) -> None:
    driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    ActionChains(driver, duration=0).move_to_element(element).perform()


def test_the_page_opens_from_disk_without_errors_or_requests(opened):
    driver = opened()
    assert [entry for entry in driver.get_log("browser") if entry["level"] != "INFO"] == []
    asked = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
    assert asked == [driver.current_url]


def test_every_section_holds_what_it_promises(opened, report):
    driver = opened()
    assert texts(driver, "h1") == [f"Gates of {NAMES[0]} and {NAMES[1]}"]
    assert texts(driver, "nav a") == ["Shares", "Histograms", "Training", "Sentences", "Units"]
    assert texts(driver, "#about") == ["Translation models, read on 21 sentences of the split “test”, de to en."]
    data = json.loads(texts(driver, "#data")[0])
    rows = texts(driver, "#shares tbody tr:not(:first-child) td.number")
    expected = []
    for group in ["all", 0, 1, 2]:
        for gate in GATES:
            for model in data["models"]:
                shares = (model["all"] if group == "all" else model["places"][str(group)])[gate]
                decided = shares["low"] + shares["high"]
                expected += [f"{100 * share:.1f}%" for share in (shares["low"], shares["high"], decided)]
                expected.append(f"{shares['mean']:.3f}")
    numbers = [float(text.rstrip("%")) for text in rows]
    assert numbers == pytest.approx([float(text.rstrip("%")) for text in expected], abs=0.1001)
    assert len(driver.find_elements(By.CSS_SELECTOR, "#histograms svg.chart")) == 2 * 3
    assert len(driver.find_elements(By.CSS_SELECTOR, "#histograms svg.chart path.line")) == 2 * 3 * 2
    assert len(driver.find_elements(By.CSS_SELECTOR, "#moves svg.chart circle")) == 4 * 2 * 3
    assert len(driver.find_elements(By.CSS_SELECTOR, "#units table")) == 4
    assert len(driver.find_elements(By.CSS_SELECTOR, "#sentences .card")) == 2
    assert texts(driver, "#units th.unit")[0].startswith(("encoder, layer 1", "decoder, layer 1"))


def test_a_histograms_line_is_drawn_through_its_counts(opened):
    driver = opened()
    data = json.loads(texts(driver, "#data")[0])
    charts = driver.find_elements(By.CSS_SELECTOR, "#histograms svg.chart")
    for chart, (gate, place) in zip(charts, [(gate, place) for gate in GATES for place in range(3)], strict=True):
        heights = []
        for path in chart.find_elements(By.CSS_SELECTOR, "path.line"):
            points = re.findall(r"[ML][\d.]+ ([\d.e-]+)H", path.get_attribute("d"))
            heights.append([146 - float(y) for y in points])  # the axis lies at 146
        top = float(chart.find_elements(By.TAG_NAME, "text")[2].text.rstrip("%")) / 100
        for series, model in enumerate(data["models"]):
            found = model["places"][str(place)][gate]
            shares = np.array(found["histogram"]) / found["gates"]
            np.testing.assert_allclose(np.array(heights[series]) / 136 * top, shares, atol=1e-3)


def test_a_logarithmic_scale_can_be_chosen(opened):
    driver = opened()
    data = json.loads(texts(driver, "#data")[0])
    before = texts(driver, "#histograms path.line")
    (_, logarithmic) = driver.find_elements(By.CSS_SELECTOR, "#histograms option")
    logarithmic.click()
    chart = driver.find_element(By.CSS_SELECTOR, "#histograms svg.chart")
    labels = [text.text for text in chart.find_elements(By.TAG_NAME, "text") if "%" in text.text]
    assert labels[:3] == ["0.01%", "0.1%", "1%"] and len(texts(driver, "#histograms path.line")) == len(before)
    path = chart.find_element(By.CSS_SELECTOR, "path.line").get_attribute("d")
    heights = [146 - float(y) for y in re.findall(r"[ML][\d.]+ ([\d.e-]+)H", path)]
    found = data["models"][0]["places"]["0"]["input"]
    decade = 136 / (len(labels) - 1)
    expected = [max(0, np.log10(max(count, 1e-9) / found["gates"] / 1e-4)) * decade for count in found["histogram"]]
    assert heights == pytest.approx(expected, abs=0.01)


def test_pointing_at_a_token_shows_its_units_as_they_were_recorded(opened, sentences):
    driver = opened()
    cards = driver.find_elements(By.CSS_SELECTOR, "#sentences .card")
    for card, recorded in zip(cards, sentences, strict=True):
        shown = recorded[0]
        gates = {place.label: values for place, values in shown.gates.items()}
        for side, label, position in ((0, "encoder, layer 1", 2), (1, "decoder, layer 1", 1)):
            row = card.find_elements(By.CSS_SELECTOR, ".side")[side].find_elements(By.CSS_SELECTOR, ".tokens")[1]
            point_at(driver, row.find_elements(By.CSS_SELECTOR, ".token")[position])
            tokens = shown.target if side else shown.source
            assert card.find_element(By.CSS_SELECTOR, ".which").text == tokens[position].text
            for unit in (0, 7, 15):
                point_at(driver, card.find_element(By.CSS_SELECTOR, f".cells.gate-input i[data-unit='{unit}']"))
                said = card.find_element(By.CSS_SELECTOR, ".readout").text
                assert said.startswith(f"unit {unit}: input gate ") and ", forget gate " in said
                values = re.findall(r"gate ([\d.]+)", said)
                expected = [kind[position, unit] for kind in gates[label]]
                # two decimals of a byte's steps
                assert [float(value) for value in values] == pytest.approx(expected, abs=0.005 + 0.5 / 255)
            said = card.find_element(By.CLASS_NAME, "panel").text
            means = [float(mean) for mean in re.findall(r"mean ([\d.]+);", said)]
            assert means == pytest.approx([kind[position].mean() for kind in gates[label]], abs=0.005 + 0.5 / 255)


def test_a_unit_can_shade_the_tokens_alone_and_is_followed_from_token_to_token(opened, sentences):
    driver = opened()
    card = driver.find_element(By.CSS_SELECTOR, "#sentences .card")
    shown, (row, forget_row, *_) = sentences[0][0], card.find_elements(By.CSS_SELECTOR, ".tokens")
    gates = next(values for place, values in shown.gates.items() if place.label == "encoder, layer 1")
    tokens = row.find_elements(By.CSS_SELECTOR, ".token")
    point_at(driver, tokens[1])
    square = card.find_element(By.CSS_SELECTOR, ".cells.gate-input i[data-unit='6']")
    point_at(driver, square)
    point_at(driver, tokens[3])
    said = [float(value) for value in re.findall(r"gate ([\d.]+)", card.find_element(By.CSS_SELECTOR, ".readout").text)]
    assert said == pytest.approx([kind[3, 6] for kind in gates], abs=0.005 + 0.5 / 255)
    card.find_element(By.CSS_SELECTOR, ".cells.gate-input i[data-unit='6']").click()
    assert "unit 6 alone" in card.find_element(By.CSS_SELECTOR, ".side h4").text

    def shades(line: WebElement) -> list[float]:
        script = "return arguments[0].map((token) => Number(token.style.getPropertyValue('--value')))"
        return driver.execute_script(script, line.find_elements(By.CSS_SELECTOR, ".token"))

    assert shades(row) == pytest.approx(gates[0][:, 6].tolist(), abs=0.5 / 255 + 1e-6)
    assert shades(forget_row) == pytest.approx(gates[1][:, 6].tolist(), abs=0.5 / 255 + 1e-6)
    assert tokens[2].get_attribute("aria-label").endswith("of unit 6")
    card.find_element(By.CSS_SELECTOR, ".panel button").click()
    means = gates[0].mean(1)
    order = np.argsort(shades(row))
    assert np.allclose(np.sort(means), means[order], atol=1 / 255)
    assert tokens[2].get_attribute("aria-label").endswith("on average")
    # and by keys
    cells = card.find_element(By.CSS_SELECTOR, ".cells.gate-forget")
    driver.execute_script("arguments[0].focus()", cells)
    cells.send_keys(Keys.ARROW_RIGHT, Keys.ENTER)
    assert card.find_element(By.CSS_SELECTOR, ".readout").text.startswith("unit 7: ")
    assert shades(row) == pytest.approx(gates[0][:, 7].tolist(), abs=0.5 / 255 + 1e-6)


def test_another_layer_and_another_sentence_can_be_chosen(opened, sentences):
    driver = opened()

    def choose(label: str, option: str) -> None:
        for box in driver.find_elements(By.CSS_SELECTOR, "#sentences label"):
            if box.text.startswith(label):
                (found,) = [o for o in box.find_elements(By.TAG_NAME, "option") if o.text.startswith(option)]
                found.click()

    choose("layer of the source", "encoder, layer 1, backward")
    choose("sentence", "12: ")
    shown = sentences[0][2]
    card = driver.find_element(By.CSS_SELECTOR, "#sentences .card")
    (row, _) = card.find_element(By.CSS_SELECTOR, ".side").find_elements(By.CSS_SELECTOR, ".tokens")
    labels = [token.get_attribute("aria-label") for token in row.find_elements(By.CSS_SELECTOR, ".token")]
    (backward,) = [values for place, values in shown.gates.items() if place.reverse]
    for token, label, mean in zip(shown.source, labels, backward[0].mean(1), strict=True):
        text, value = re.fullmatch(r"(.*): input gates ([\d.]+) on average", label).groups()
        assert text == token.text and float(value) == pytest.approx(mean, abs=0.005 + 0.5 / 255)
    assert driver.find_element(By.ID, "reference").text.endswith(shown.reference)
    buttons = driver.find_elements(By.CSS_SELECTOR, "#sentences .controls button")
    assert [button.is_enabled() for button in buttons] == [True, False]
    buttons[0].click()
    assert driver.find_element(By.ID, "reference").text.endswith(sentences[0][1].reference)


def test_keys_move_along_the_tokens(opened, sentences):
    driver = opened()
    card = driver.find_element(By.CSS_SELECTOR, "#sentences .card")
    tokens = card.find_element(By.CSS_SELECTOR, ".tokens").find_elements(By.CSS_SELECTOR, ".token")
    driver.execute_script("arguments[0].focus()", tokens[0])
    source = [token.text for token in sentences[0][0].source]
    for keys, position in ((Keys.ARROW_RIGHT, 1), (Keys.ARROW_RIGHT, 2), (Keys.ARROW_LEFT, 1), (Keys.END, -1)):
        driver.switch_to.active_element.send_keys(keys)
        assert driver.switch_to.active_element == tokens[position]
        assert card.find_element(By.CSS_SELECTOR, ".which").text == source[position]
    driver.switch_to.active_element.send_keys(Keys.TAB)  # a row is one stop
    assert driver.switch_to.active_element not in tokens


def test_the_attention_is_the_recorded_one(opened, sentences):
    driver = opened()
    for card, recorded in zip(driver.find_elements(By.CSS_SELECTOR, ".card"), sentences, strict=True):
        shown = recorded[0]
        cells = card.find_elements(By.CSS_SELECTOR, "table.attention td[title]")
        script = "return arguments[0].map((cell) => Number(cell.style.getPropertyValue('--value')))"
        weights = np.array(driver.execute_script(script, cells)).reshape(shown.attention.shape)
        np.testing.assert_allclose(weights, shown.attention, atol=0.5 / 255 + 1e-6)


def test_markup_in_the_corpus_shows_as_text(opened, sentences):
    driver = opened()
    assert driver.title == f"Gates of {NAMES[0]} and {NAMES[1]}"
    expected = [token.text for token in sentences[0][0].source]
    assert {MARKUP, IMAGE, "</script>", '"quoted"', "&amp;"} <= set(expected)
    card = driver.find_element(By.CSS_SELECTOR, "#sentences .card")
    row = card.find_element(By.CSS_SELECTOR, ".tokens")
    assert [token.text for token in row.find_elements(By.CSS_SELECTOR, ".token")] == expected
    assert driver.find_elements(By.CSS_SELECTOR, "main script, main img, main i:not([data-unit]):not(.bar i)") == []
    assert texts(driver, "#sentences .word:nth-child(3)")[0] == "piece"  # of two pieces


def test_a_narrow_window_does_not_scroll_sideways(opened):
    driver = opened(width=360)
    for _ in CHOSEN:
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
        outside = driver.execute_script(
            "return [...document.querySelectorAll('body *')].filter((node) => !node.closest('.scroll') && "
            "node.getBoundingClientRect().right > 360.5).map((node) => node.outerHTML.slice(0, 80))"
        )
        assert outside == []
        driver.find_elements(By.CSS_SELECTOR, "#sentences .controls button")[1].click()


# Colours of text and what lies behind it, as numbers from 0 to 1.
COLOURS = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
};
const behind = (node) => {
  for (; node !== null; node = node.parentElement) {
    const colour = rgba(getComputedStyle(node).backgroundColor);
    if (colour[3] === 1) return colour;
  }
  return [1, 1, 1, 1];
};
const selector = "h1, h2, h3, h4, p, b, small, li, a, th, td.number, figcaption, label, select, svg text, " +
  ".token, .row > span, .scale";
return [...document.querySelectorAll(selector)].map((node) => {
  const style = getComputedStyle(node);
  const colour = node.tagName === "text" ? style.fill : style.color;
  return [node.tagName + " " + node.getAttribute("class"), rgba(colour), behind(node)];
});
"""


def luminance(colour: list[float]) -> float:
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(opened, scheme):
    driver = opened(scheme=scheme)
    found = driver.execute_script(COLOURS)
    assert len(found) > 100
    for name, text, background in found:
        light, dark = sorted((luminance(text), luminance(background)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, text, background)  # WCAG's level AA
    page = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert page == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[scheme]


# Machado, Oliveira, Fernandes (2009), full severity, on linear RGB.
VISION = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
    "all colours": np.eye(3).tolist(),
}


def cielab(colour: str, vision: list[list[float]]) -> np.ndarray:
    """A colour #rrggbb as seen, in CIE L*a*b* under D65."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(vision) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    scaled = xyz / [0.9505, 1.0, 1.089]
    f = np.where(scaled > 216 / 24389, np.cbrt(scaled), (24389 / 27 * scaled + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colours_can_be_told_apart_by_every_kind_of_colour_vision(opened, scheme, vision):
    driver = opened(scheme=scheme)

    def variable(name: str) -> str:
        return driver.execute_script(
            "return getComputedStyle(document.documentElement).getPropertyValue(arguments[0])", name
        ).strip()

    series = [variable(f"--series-{number}") for number in range(3)]  # more models have other dashes too
    pairs = list(itertools.combinations(series, 2))
    pairs += [(variable(f"--{name}-least"), variable(f"--{name}-most")) for name in ("input", "forget", "attention")]
    for one, other in [*pairs, (variable("--input-most"), variable("--forget-most"))]:
        difference = np.linalg.norm(cielab(one, VISION[vision]) - cielab(other, VISION[vision]))
        assert difference > 20, (one, other)  # 2.3 can just be noticed


def test_each_models_line_has_dashes_of_its_own(opened):
    lines = opened().find_elements(By.CSS_SELECTOR, "#models line")
    assert len({line.value_of_css_property("stroke-dasharray") for line in lines}) == len(lines) == 2


def test_a_language_models_page_shows_its_text_alone(opened, tiny_text, tmp_path):
    trained = train_lm(tiny_text, tmp_path / "lm", "--max-update", 2)
    assert main([str(trained / "checkpoint_last.pt"), str(tiny_text), "--out", str(tmp_path), "--sentences", "2"]) == 0
    driver = opened(page=tmp_path / "report.html")
    assert [entry for entry in driver.get_log("browser") if entry["level"] != "INFO"] == []
    assert texts(driver, "nav a") == ["Shares", "Histograms", "Sentences", "Units"]
    assert texts(driver, "#sentences .side h4") == ["Text decoder, layer 1"]
    assert driver.find_elements(By.CSS_SELECTOR, "table.attention") == []
    assert not driver.find_element(By.ID, "reference").is_displayed()
    reader = Reader(trained / "checkpoint_last.pt", tiny_text, "test")
    _, (shown,) = reader.read(1000, [2])
    tokens = driver.find_element(By.CSS_SELECTOR, "#sentences .tokens").find_elements(By.CSS_SELECTOR, ".token")
    assert [token.text for token in tokens] == [token.text for token in shown.target]
    point_at(driver, tokens[3])
    point_at(driver, driver.find_element(By.CSS_SELECTOR, ".cells.gate-forget i[data-unit='5']"))
    said = re.findall(r"gate ([\d.]+)", driver.find_element(By.CSS_SELECTOR, ".readout").text)
    expected = [values[3, 5] for values in next(iter(shown.gates.values()))]
    assert [float(value) for value in said] == pytest.approx(expected, abs=0.005 + 0.5 / 255)
