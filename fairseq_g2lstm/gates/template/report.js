// The head of the page, and the order of it all.

function drawHead() {
  const { data, models } = report;
  const names = models.map((model) => model.name);
  const title = "Gates of " + (names.length > 1 ? names.slice(0, -1).join(", ") + " and " + names.at(-1) : names[0]);
  document.title = title;
  find("#title").textContent = title;
  const part = data.n_read < data.n_sentences ? `the first ${data.n_read.toLocaleString("en")} of ` : "";
  const languages = data.languages.length ? `, ${data.languages.join(" to ")}` : "";
  const kind = data.languages.length ? "Translation models" : "Language models";
  find("#about").textContent = `${kind}, read on ${part}${plural(data.n_sentences, "sentence")} of the split “${data.split}”${languages}.`;
  models.forEach((model, series) => {
    const updates = model.updates === null ? "" : `, ${plural(model.updates, "update")}`;
    find("#models").append(element("li", {}, key(series), element("b", {}, model.name), ` — ${model.gates}${updates}`));
  });
}

drawHead();
drawShares();
drawHistograms();
drawMoves();
drawSentences();
drawUnits();
for (const section of document.querySelectorAll("main section")) {
  find("nav").append(element("a", { href: "#" + section.id }, section.dataset.short));
}
