// Histograms, and lines over the training.

const CHART = { width: 320, height: 170, left: 42, right: 10, top: 10, bottom: 24 };
const across = (share) => CHART.left + share * (CHART.width - CHART.left - CHART.right);
const up = (share) => CHART.height - CHART.bottom - share * (CHART.height - CHART.top - CHART.bottom);

// The smallest number with a round half that is not below the value.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return [1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((round) => round >= value * 0.999999);
}

// An empty chart; ticks are pairs of a place from 0 to 1 and a label.
function chart(name, xTicks, yTicks) {
  const svg = drawing("svg", { class: "chart", viewBox: `0 0 ${CHART.width} ${CHART.height}`, role: "img", "aria-label": name });
  for (const [place, label] of yTicks) {
    svg.append(
      drawing("line", { class: "axis", x1: across(0), x2: across(1), y1: up(place), y2: up(place) }),
      drawing("text", { x: CHART.left - 6, y: up(place) + 4, "text-anchor": "end" }, label),
    );
  }
  for (const [place, label] of xTicks) {
    const anchor = place === 1 ? "end" : place === 0 ? "start" : "middle";
    svg.append(drawing("text", { x: across(place), y: CHART.height - 8, "text-anchor": anchor }, label));
  }
  return svg;
}

// How shares from 0 to `highest` stand on a chart: a place from 0 to 1 of each, and ticks.
function linearScale(highest) {
  const ticks = [0, 0.5, 1].map((part) => [part, percent(part * highest, highest < 0.1 ? 1 : 0)]);
  return { place: (share) => share / highest, ticks };
}

const LEAST = 1e-4; // that a logarithmic chart shows
function logarithmicScale(highest) {
  const decades = Math.ceil(Math.log10(highest / LEAST) - 1e-9);
  const place = (share) => Math.max(0, Math.log10(share / LEAST) / decades);
  const ticks = Array.from({ length: decades + 1 }, (_, power) => [power / decades, +(100 * LEAST * 10 ** power).toPrecision(1) + "%"]);
  return { place, ticks };
}

function histogramChart(place, gate, scale) {
  const models = report.models.map((model, series) => ({ model, series })).filter(({ model }) => place in model.places);
  const name = `${report.places[place].label}, ${gate} gates`;
  const ticks = [0, 0.1, 0.5, 0.9, 1].map((value) => [value, String(value)]);
  const svg = chart("Histogram: " + name, ticks, scale.ticks);
  for (const start of [0, 0.9]) {
    svg.prepend(drawing("rect", { class: "ends", x: across(start), y: up(1), width: across(0.1) - across(0), height: up(0) - up(1) }));
  }
  const shares = models.map(({ model }) => {
    const histogram = model.places[place][gate].histogram;
    return histogram.map((count) => count / model.places[place][gate].gates);
  });
  const bins = shares[0].length;
  models.forEach(({ series }, number) => {
    let path = "";
    shares[number].forEach((share, bin) => {
      path += `${bin ? "L" : "M"}${across(bin / bins)} ${up(scale.place(share))}H${across((bin + 1) / bins)}`;
    });
    const group = drawing("g", { class: "series-" + (series % 6) });
    group.append(
      drawing("path", { class: "area", d: `${path}V${up(0)}H${across(0)}Z` }),
      drawing("path", { class: "line", d: path }),
    );
    svg.append(group);
  });
  for (let bin = 0; bin < bins; bin++) {
    const lines = models.map(({ model }, number) => `${model.name}: ${percent(shares[number][bin], 2)}`);
    const range = `${(bin / bins).toFixed(2)} to ${((bin + 1) / bins).toFixed(2)}`;
    const x = across(bin / bins);
    const hit = drawing("rect", { class: "hit", x, y: up(1), width: across((bin + 1) / bins) - x, height: up(0) - up(1) });
    hit.append(drawing("title", {}, [range, ...lines].join("\n")));
    svg.append(hit);
  }
  return svg;
}

function drawHistograms() {
  find("#histograms .legend").append(...legend());
  let highest = 0;
  for (const model of report.models) {
    for (const gates of Object.values(model.places)) {
      for (const gate of GATES) highest = Math.max(highest, ...gates[gate].histogram.map((count) => count / gates[gate].gates));
    }
  }
  const scales = [linearScale(roundUp(highest)), logarithmicScale(highest)];
  const draw = (scale) => {
    find("#histograms .content").replaceChildren();
    for (const gate of GATES) {
      const charts = element("div", { class: "charts" });
      report.places.forEach(({ label }, place) => {
        charts.append(element("figure", {}, element("figcaption", {}, label), histogramChart(place, gate, scales[scale])));
      });
      find("#histograms .content").append(element("h3", {}, gate + " gates"), charts);
    }
  };
  find("#histograms .controls").append(select("scale of the shares", [[0, "linear"], [1, "logarithmic"]], draw));
  draw(0);
}

// which: 1 for the share of decided gates, 2 for the mean.
function movesChart(place, gate, which, highest, last) {
  const name = which === 1 ? "share of decided gates" : "mean";
  const yLabel = (part) => (which === 1 ? percent(part * highest, highest < 0.1 ? 1 : 0) : String(part * highest));
  const xTicks = [0, 0.5, 1].map((part) => [part, Math.round(part * last).toLocaleString("en")]);
  const svg = chart(`${report.places[place].label}, ${gate} gates, ${name} over the updates`, xTicks, [0, 0.5, 1].map((part) => [part, yLabel(part)]));
  report.models.forEach((model, series) => {
    const line = model.moments.find((moment) => moment.place === place && moment.gate === gate);
    if (line === undefined) return;
    const points = line.points.filter((point) => point[which] !== null);
    const at = (point) => `${across(point[0] / last)} ${up(point[which] / highest)}`;
    const group = drawing("g", { class: "series-" + (series % 6) });
    group.append(drawing("path", { class: "line", d: "M" + points.map(at).join("L") }));
    for (const point of points) {
      const value = which === 1 ? percent(point[1]) : point[2].toFixed(3);
      const dot = drawing("circle", { cx: across(point[0] / last), cy: up(point[which] / highest), r: points.length < 30 ? 3 : 1.5 });
      dot.append(drawing("title", {}, `${model.name}, ${point[0].toLocaleString("en")} updates: ${value}`));
      group.append(dot);
    }
    svg.append(group);
  });
  return element("figure", {}, element("figcaption", {}, report.places[place].label), svg);
}

function drawMoves() {
  const lines = report.models.flatMap((model) => model.moments);
  if (lines.length === 0) {
    find("#moves").remove();
    return;
  }
  find("#moves .legend").append(...legend((model) => model.moments.length > 0));
  const points = lines.flatMap((line) => line.points);
  const last = Math.max(1, ...points.map((point) => point[0]));
  const highest = roundUp(Math.max(0.01, ...points.map((point) => point[1])));
  for (const gate of GATES) {
    for (const [which, name, top] of [[1, "decided", highest], [2, "mean", 1]]) {
      const charts = element("div", { class: "charts" });
      report.places.forEach((_, place) => {
        if (lines.some((line) => line.place === place)) charts.append(movesChart(place, gate, which, top, last));
      });
      find("#moves .content").append(element("h3", {}, `${gate} gates, ${name}`), charts);
    }
  }
}
