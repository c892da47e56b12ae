// The shares of all layers, and the most and least decided units.

function bar(shares) {
  const name = `${percent(shares.low)} closed, ${percent(shares.high)} open`;
  const [closed, open] = [element("i"), element("i")];
  closed.style.width = percent(shares.low, 3);
  open.style.width = percent(shares.high, 3);
  return element("span", { class: "bar", role: "img", "aria-label": name, title: name }, closed, open);
}

const number = (text) => element("td", { class: "number" }, text);
const numbers = (shares) => [
  number(percent(shares.low)),
  number(percent(shares.high)),
  number(percent(shares.low + shares.high)),
  number(shares.mean.toFixed(3)),
];

function heads(...names) {
  const cells = names.map((name) => element("th", { scope: "col" }, name));
  const figures = ["below 0.1", "above 0.9", "decided", "mean"];
  cells.push(...figures.map((name) => element("th", { scope: "col", class: "number" }, name)));
  return element("thead", {}, element("tr", {}, ...cells));
}

function drawShares() {
  const table = element("table", {}, heads("gate", "model"));
  table.tHead.rows[0].append(element("th", { scope: "col" }, "closed … open"));
  const group = (label, sharesOf) => {
    const body = element("tbody", {}, element("tr", {}, element("th", { class: "place", colspan: 7, scope: "rowgroup" }, label)));
    for (const gate of GATES) {
      report.models.forEach((model, series) => {
        const shares = sharesOf(model);
        if (shares === undefined) return;
        const name = element("th", { scope: "row" }, key(series), model.name);
        const cells = [element("td", {}, series === 0 ? gate : ""), name, ...numbers(shares[gate]), element("td", {}, bar(shares[gate]))];
        body.append(element("tr", { class: series === 0 ? "gate-first" : "" }, ...cells));
      });
    }
    table.append(body);
  };
  if (report.places.length > 1) group("all layers", (model) => model.all);
  report.places.forEach(({ label }, place) => group(label, (model) => model.places[place]));
  find("#shares .scroll").append(table);
}

function unitTable(title, units) {
  const body = element("tbody");
  for (const unit of units) {
    const name = element("th", { scope: "row", class: "unit" }, `${report.places[unit.place].label}, unit\u00a0${unit.unit}`);
    body.append(element("tr", {}, name, ...numbers(unit)));
  }
  const table = element("table", {}, heads("unit"), body);
  const scroll = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title + " units" }, table);
  return element("div", {}, element("h4", {}, title), scroll);
}

function drawUnits() {
  const content = find("#units .content");
  const draw = (gate) => {
    content.replaceChildren();
    report.models.forEach((model, series) => {
      const { most, least } = model.units[GATES[gate]];
      const lists = element("div", { class: "lists" }, unitTable("Most decided", most), unitTable("Least decided", least));
      content.append(element("h3", {}, key(series), model.name), lists);
    });
  };
  find("#units .controls").append(select("gates", GATES.map((gate, value) => [value, gate + " gates"]), draw));
  draw(0);
}
