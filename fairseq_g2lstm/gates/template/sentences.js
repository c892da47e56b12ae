// Sentences token by token: how far gates open and keep, the attention, and all units of the token pointed at.

const shown = { sentence: 0, source: 0, target: 0 }; // numbers of the sentence and of the places
const sidePlaces = (side) => report.places.map((place, number) => ({ ...place, number })).filter((place) => place.source === (side === "source"));

const decoded = new Map(); // base64 -> bytes
function bytes(text) {
  if (!decoded.has(text)) decoded.set(text, Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)));
  return decoded.get(text);
}

// The units' gates at one token, from 0 to 1.
function unitsAt(gates, gate, position) {
  const start = position * gates.units;
  return Array.from(bytes(gates[gate]).subarray(start, start + gates.units), (byte) => byte / 255);
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const tokenMeans = (gates, gate, n) => Array.from({ length: n }, (_, position) => mean(unitsAt(gates, gate, position)));

// The least and the greatest mean of a place's tokens in all sentences and models: the ends of the colours' scale.
const ranges = new Map();
function range(place, gate) {
  const name = place + gate;
  if (!ranges.has(name)) {
    const side = report.places[place].source ? "source" : "target";
    const means = report.sentences.flatMap((sentence) =>
      sentence.models.filter((model) => place in model.gates).flatMap((model) => tokenMeans(model.gates[place], gate, model[side].length)),
    );
    ranges.set(name, means.length ? [Math.min(...means), Math.max(...means)] : [0, 1]);
  }
  return ranges.get(name);
}

const VERBS = { input: ["open least", "open most"], forget: ["keep least", "keep most"] };

function scale(gate, [low, high]) {
  const [least, most] = VERBS[gate];
  return element("span", { class: "scale gate-" + gate }, `${gate} gates ${least} ${low.toFixed(2)}`, element("span", { class: "ramp" }), `${high.toFixed(2)} ${most}`);
}

class ModelView {
  constructor(series, model) {
    this.model = model;
    this.panel = element("div", { class: "panel" });
    this.attention = attentionTable(model);
    this.buttons = []; // { button, side, gate, position }
    this.captions = {}; // of the sides
    this.unit = null; // that was pointed at last
    this.alone = { source: null, target: null }; // the unit that alone shades a side's tokens
    const tokens = element("div", {}, ...this.sides(), this.panel);
    const parts = element("div", { class: "parts" }, tokens);
    if (this.attention !== null) {
      parts.classList.add("two");
      const box = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Attention" }, this.attention);
      parts.append(element("div", {}, element("h4", {}, "Attention ", element("small", {}, "across: where the decoder looked; down: what it wrote")), box));
    }
    this.node = element("article", { class: "card" }, element("h3", {}, key(series), report.models[series].name), parts);
    const first = this.buttons[0];
    if (first) this.point(first.side, first.position);
  }

  sides() {
    const { model } = this;
    const found = [];
    for (const [side, title] of [["source", "Source"], ["target", model.source.length ? "Translation" : "Text"]]) {
      if (model[side].length === 0) continue;
      const place = shown[side];
      this.captions[side] = element("small", {}, report.places[place].label);
      const node = element("div", { class: "side" }, element("h4", {}, title + " ", this.captions[side]));
      if (place in model.gates) {
        for (const gate of GATES) node.append(this.row(side, gate));
        this.shade(side);
      } else node.append(element("p", { class: "muted" }, `This model has no ${report.places[place].label}.`));
      found.push(node);
    }
    return found;
  }

  row(side, gate) {
    const line = element("div", { class: "tokens gate-" + gate, role: "group", "aria-label": `${gate} gates of the ${side}’s tokens` });
    let word = null;
    this.model[side].forEach((token, position) => {
      if (word === null || !token.joined) line.append((word = element("span", { class: "word" })));
      const point = () => this.point(side, position);
      const attributes = { type: "button", class: token.special ? "token special" : "token", tabindex: position === 0 ? 0 : -1 };
      const button = element("button", { ...attributes, onmouseenter: point, onfocus: point, onclick: point }, token.text);
      button.addEventListener("keydown", (event) => move(event, line));
      word.append(button);
      this.buttons.push({ button, side, gate, position });
    });
    const caption = gate === "input" ? "input gates open" : "forget gates keep";
    return element("div", { class: "row" }, element("span", {}, caption), line);
  }

  // Colours a side's tokens by the mean of all units, from the least to the greatest, or by one unit, from 0 to 1.
  shade(side) {
    const place = shown[side];
    const unit = this.alone[side];
    for (const gate of GATES) {
      const [low, high] = unit === null ? range(place, gate) : [0, 1];
      for (const { button, position } of this.buttons.filter((entry) => entry.side === side && entry.gate === gate)) {
        const units = unitsAt(this.model.gates[place], gate, position);
        const value = unit === null ? mean(units) : units[unit];
        button.style.setProperty("--value", high > low ? (value - low) / (high - low) : 0.5);
        const what = unit === null ? `${gate} gates ${value.toFixed(2)} on average` : `${gate} gate ${value.toFixed(2)} of unit ${unit}`;
        button.setAttribute("aria-label", `${this.model[side][position].text}: ${what}`);
      }
    }
    this.captions[side].textContent = report.places[place].label + (unit === null ? "" : `, unit ${unit} alone, from 0 to 1`);
  }

  // Shows the units of a token's layer, and marks the token wherever it stands.
  point(side, position) {
    for (const entry of this.buttons) entry.button.classList.toggle("shown", entry.side === side && entry.position === position);
    const gates = this.model.gates[shown[side]];
    const values = Object.fromEntries(GATES.map((gate) => [gate, unitsAt(gates, gate, position)]));
    if (this.unit !== null && this.unit >= gates.units) this.unit = null;
    const which = element("span", { class: "which" }, this.model[side][position].text);
    const title = element("h4", {}, "The units at “", which, "” ", element("small", {}, report.places[shown[side]].label));
    this.panel.replaceChildren(title, this.strips(side, values));
    markAttention(this.attention, side, position);
  }

  // All units at a token as squares, and what is to be read of the one that was pointed at last.
  strips(side, values) {
    const readout = element("p", { class: "readout", "aria-live": "polite" });
    const again = element("button", { type: "button", class: "step" }, "Shade by all units again");
    const boxes = GATES.map((gate) => {
      const squares = values[gate].map((value, unit) => element("i", { "--value": value, "data-unit": unit }));
      const cells = element("div", { class: "cells gate-" + gate, tabindex: 0, role: "group", "aria-label": `units’ ${gate} gates: arrow keys and Enter` }, ...squares);
      const unitOf = (event) => (event.target.dataset.unit === undefined ? null : Number(event.target.dataset.unit));
      cells.addEventListener("mouseover", (event) => unitOf(event) === null || say(unitOf(event)));
      cells.addEventListener("click", (event) => unitOf(event) === null || pick(unitOf(event)));
      cells.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        const next = this.unit === null ? 0 : this.unit + (step ?? 0);
        if (step !== undefined && next in squares) say(next);
        else if (event.key === "Enter" && this.unit !== null) pick(this.unit);
        else return;
        event.preventDefault();
      });
      const low = mean(values[gate].map((value) => (value < 0.1 ? 1 : 0)));
      const high = mean(values[gate].map((value) => (value > 0.9 ? 1 : 0)));
      const summary = `mean ${mean(values[gate]).toFixed(2)}; ${percent(low, 0)} below 0.1, ${percent(high, 0)} above 0.9`;
      return element("div", { class: "strip" }, element("p", {}, element("b", { class: gate }, gate + " gates"), " " + summary), cells);
    });
    const say = (unit) => {
      this.unit = unit;
      const [input, forget] = unit === null ? [] : GATES.map((gate) => values[gate][unit].toFixed(2));
      readout.textContent =
        unit === null ? "Point at a square to read its unit, click it to shade the tokens by it alone." : `unit ${unit}: input gate ${input}, forget gate ${forget}`;
      for (const box of boxes) box.querySelectorAll("i").forEach((square, number) => square.classList.toggle("shown", number === unit));
    };
    const pick = (unit) => {
      this.alone[side] = this.alone[side] === unit ? null : unit;
      this.shade(side);
      again.hidden = this.alone[side] === null;
    };
    again.addEventListener("click", () => pick(this.alone[side]));
    again.hidden = this.alone[side] === null;
    say(this.unit);
    return element("div", {}, element("div", { class: "strips" }, ...boxes), readout, again);
  }
}

// Arrow keys move along a row of tokens, which is one stop for the tab key.
function move(event, line) {
  const buttons = [...line.querySelectorAll("button")];
  const from = buttons.indexOf(event.currentTarget);
  const to = { ArrowRight: from + 1, ArrowLeft: from - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (to === undefined || !(to in buttons)) return;
  event.preventDefault();
  buttons[from].tabIndex = -1;
  buttons[to].tabIndex = 0;
  buttons[to].focus();
}

function attentionTable(model) {
  if (model.attention === null) return null;
  const weights = bytes(model.attention);
  const width = model.source.length;
  const head = element("tr", {}, element("td"));
  for (const token of model.source) head.append(element("th", { scope: "col" }, element("span", {}, (token.joined ? "+" : "") + token.text)));
  const body = element("tbody");
  model.written.forEach((token, row) => {
    const line = element("tr", {}, element("th", { scope: "row" }, (token.joined ? "+" : "") + token.text));
    model.source.forEach((looked, column) => {
      const weight = weights[row * width + column] / 255;
      const title = `writing “${token.text}”, looked at “${looked.text}”: ${weight.toFixed(2)}`;
      line.append(element("td", { "--value": weight, title }));
    });
    body.append(line);
  });
  return element("table", { class: "attention" }, element("thead", {}, head), body);
}

function markAttention(table, side, position) {
  if (table === null) return;
  for (const node of table.querySelectorAll(".shown")) node.classList.remove("shown");
  if (side === "source") {
    table.tHead.rows[0].cells[position + 1].classList.add("shown");
    for (const row of table.tBodies[0].rows) row.cells[position + 1].classList.add("shown");
  } else if (position > 0) {
    // the token that is read now was written a row before
    for (const cell of table.tBodies[0].rows[position - 1].cells) cell.classList.add("shown");
  }
}

function drawSentence() {
  const sentence = report.sentences[shown.sentence];
  const reference = find("#reference");
  reference.hidden = sentence.reference === "";
  reference.replaceChildren(element("span", { class: "muted" }, "Reference translation: "), sentence.reference);
  const content = find("#sentences .content");
  const scales = ["source", "target"]
    .filter((side) => sidePlaces(side).length > 0)
    .map((side) => {
      const place = shown[side];
      return element("div", { class: "scales" }, element("span", {}, report.places[place].label), ...GATES.map((gate) => scale(gate, range(place, gate))));
    });
  content.replaceChildren(...scales, ...sentence.models.map((model, series) => new ModelView(series, model).node));
}

function drawSentences() {
  if (report.sentences.length === 0) {
    find("#sentences").remove();
    return;
  }
  const isTranslation = report.sentences[0].models[0].source.length > 0;
  find("#sentences .lead").textContent =
    "Each token is shaded by the mean of a layer’s gates as the layer read it: the stronger the blue, the more of the token the " +
    "input gates let in; the stronger the orange, the more of what came before the forget gates keep. Point at a token, or move to it " +
    "with Tab and the arrow keys, to see each unit of the layer; click a unit’s square to shade the tokens by it alone." +
    (isTranslation ? " The translation is the model’s own; the attention shows where the decoder looked as it wrote each token." : "");
  const controls = find("#sentences .controls");
  const names = report.sentences.map((sentence, value) => [value, `${sentence.number}: ${sentence.text}`]);
  const picker = select("sentence", names, (value) => go(value), { class: "wide" });
  const box = picker.querySelector("select");
  const back = element("button", { type: "button", class: "step", onclick: () => go(shown.sentence - 1) }, "‹ Previous");
  const on = element("button", { type: "button", class: "step", onclick: () => go(shown.sentence + 1) }, "Next ›");
  const go = (value) => {
    shown.sentence = value;
    box.value = value;
    back.disabled = value === 0;
    on.disabled = value === names.length - 1;
    drawSentence();
  };
  controls.append(picker, back, on);
  for (const [side, label] of [["source", "layer of the source"], ["target", isTranslation ? "layer of the translation" : "layer"]]) {
    const places = sidePlaces(side);
    if (places.length === 0) continue;
    shown[side] = places[0].number;
    const chosen = (value) => {
      shown[side] = value;
      drawSentence();
    };
    if (places.length > 1) controls.append(select(label, places.map((place) => [place.number, place.label]), chosen));
  }
  go(0);
}
