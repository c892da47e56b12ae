"use strict";

// The report's numbers. Whatever of it is text comes from data and models, and becomes text nodes and attributes alone.
const report = JSON.parse(document.getElementById("data").textContent);
const GATES = ["input", "forget"];
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const element = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const drawing = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const find = (selector) => document.querySelector(selector);

const percent = (share, digits = 1) => (100 * share).toFixed(digits) + "%";
const plural = (count, noun) => count.toLocaleString("en") + " " + noun + (count === 1 ? "" : "s");

function key(series) {
  const line = drawing("line", { x1: 0, x2: 28, y1: 6, y2: 6 });
  return drawing("svg", { class: "key series-" + (series % 6), viewBox: "0 0 28 12", "aria-hidden": "true" }, line);
}

function legend(isShown = () => true) {
  const keys = report.models.map((model, series) => element("span", {}, key(series), model.name));
  return keys.filter((_, series) => isShown(report.models[series]));
}

function select(label, options, changed, attributes = {}) {
  const box = element("select", { onchange: () => changed(Number(box.value)) });
  for (const [value, text] of options) box.append(element("option", { value }, text));
  return element("label", attributes, label, box);
}
