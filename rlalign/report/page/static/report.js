"use strict";
// Theme, charts and copying. Texts of a run reach the page as text nodes only.

// -- the theme: the system's, until the reader chooses -------------------------------------------
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const choices = ["auto", "light", "dark"];
  let chosen = "auto";
  try {
    const kept = localStorage.getItem("rlalign-theme");
    if (choices.includes(kept)) chosen = kept;
  } catch { /* a page from a file may have no storage */ }

  function show() {
    if (chosen === "auto") delete root.dataset.theme;
    else root.dataset.theme = chosen;
    button.textContent = `Theme: ${chosen}`;
  }
  button.addEventListener("click", () => {
    chosen = choices[(choices.indexOf(chosen) + 1) % choices.length];
    try { localStorage.setItem("rlalign-theme", chosen); } catch { /* as above */ }
    show();
  });
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const each of opened) each.open = true;
  });
  addEventListener("afterprint", () => {
    for (const each of opened) each.open = false;
  });
  button.hidden = false;
  show();
})();

// -- commands that can be copied -----------------------------------------------------------------
for (const button of document.querySelectorAll(".copy")) {
  const text = button.previousElementSibling;
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

// -- charts ----------------------------------------------------------------------------------------
(() => {
  const data = JSON.parse(document.getElementById("charts").textContent);
  const color = (run) => (run < 0 ? "var(--before)" : `var(--run-${run % 8})`);
  const symbols = ["circle", "square", "triangle", "diamond", "star", "cross"];
  const symbol = (run) => symbols[Math.floor(Math.max(run, 0) / 8) % symbols.length];
  const name = (run) => (data.runs.length < 2 ? (run < 0 ? "before" : "after")
    : run < 0 ? `before ${data.runs[0]}` : data.runs[run]);
  const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 4, useGrouping: false });
  const number = (value) => short.format(value).replace("-", "−");
  const ticks = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
  const compact = (value) => ticks.format(value).replace("-", "−");

  function curves(panel) {
    const marks = [];
    const points = [];
    for (const { run, train, held } of panel.runs) {
      const stroke = color(run);
      const banded = train.filter((p) => p.length > 2);
      if (banded.length) {
        marks.push(Plot.areaY(banded, { x: "0", y1: "2", y2: "3", fill: stroke, fillOpacity: 0.13 }));
      }
      const evaluated = held.filter((p) => p.length > 2);
      marks.push(
        Plot.line(train, { x: "0", y: "1", stroke, strokeWidth: 1.7 }),
        Plot.ruleX(evaluated, { x: "0", y1: "2", y2: "3", stroke, strokeWidth: 1.4 }),
        Plot.dot(held, { x: "0", y: "1", stroke, fill: "var(--paper)", r: 3.4, strokeWidth: 1.6 }),
      );
      for (const [of, rows] of [["training", train], ["evaluation", held]]) {
        for (const p of rows) {
          const whose = data.runs.length > 1 ? `${data.runs[run]}, ${of}` : of;
          const ends = p.length > 2 ? `\n95%: ${number(p[2])} … ${number(p[3])}` : "";
          points.push({ x: p[0], y: p[1], title: `${whose}\niteration ${number(p[0])}: ${number(p[1])}${ends}` });
        }
      }
    }
    return { marks: [grid(), ...marks, tip(points)],
      x: { label: "iteration", tickFormat: compact, isWhole: true }, y: { label: null, tickFormat: compact } };
  }

  function frontiers(panel) {
    const marks = [];
    const points = [];
    for (const { run, way, held, ends } of panel.runs) {
      const stroke = color(run);
      marks.push(
        Plot.line(way, { x: "0", y: "1", stroke, strokeWidth: 1.2, strokeOpacity: 0.55 }),
        Plot.dot(held, { x: "0", y: "1", stroke, fill: "var(--paper)", r: 2.8, strokeWidth: 1.3 }),
      );
      ends.forEach(({ x, y }, at) => {
        const isLast = at === ends.length - 1;
        const own = isLast ? stroke : "var(--before)";
        marks.push(
          Plot.ruleY([x], { x1: "1", x2: "2", y: [y[0]], stroke: own, strokeWidth: 1.4 }),
          Plot.ruleX([y], { y1: "1", y2: "2", x: [x[0]], stroke: own, strokeWidth: 1.4 }),
          Plot.dot([x], { x: "0", y: [y[0]], fill: own, r: 4.2, symbol: symbol(run) }),
        );
        const whose = isLast ? name(run) : "before";
        points.push({ x: x[0], y: y[0], title: `${whose}\nKL ${number(x[0])}, ${panel.title} ${number(y[0])}` });
      });
    }
    return { marks: [grid(), ...marks, tip(points)],
      x: { label: "KL to the reference, nats", tickFormat: compact }, y: { label: null, tickFormat: compact } };
  }

  function histograms(panel) {
    const marks = [grid()];
    const points = [];
    for (const { run, shares } of panel.series) {
      const bars = panel.edges.map(([x1, x2], i) => ({ x1, x2, y: shares[i] }));
      const filled = run < 0 || panel.series.length <= 2;
      marks.push(filled
        ? Plot.rectY(bars, { x1: "x1", x2: "x2", y: "y", fill: color(run), fillOpacity: run < 0 ? 0.35 : 0.5, insetLeft: 0.5, insetRight: 0.5 })
        : Plot.line(bars.flatMap((b) => [[b.x1, b.y], [b.x2, b.y]]), { stroke: color(run), strokeWidth: 1.5 }));
      for (const b of bars) {
        if (b.y) points.push({ x: (b.x1 + b.x2) / 2, y: b.y, title: `${name(run)}\n${number(b.x1)} to ${number(b.x2)}: ${number(100 * b.y)}%` });
      }
    }
    return { marks: [...marks, Plot.ruleY([0], { stroke: "var(--soft)" }), tip(points)],
      x: { label: null, tickFormat: compact }, y: { label: null, tickFormat: "%", zero: true } };
  }

  const grid = () => Plot.gridY({ stroke: "var(--line)", strokeOpacity: 1, ticks: 5 });
  const tip = (points) => Plot.tip(points, Plot.pointer({ x: "x", y: "y", title: "title",
    fill: "var(--paper)", stroke: "var(--line)", fontSize: 12, maxRadius: 60 }));

  /** Ticks of iterations, of which there are no halves. */
  function wholeTicks(panel, count) {
    const steps = panel.runs.flatMap(({ train, held }) => [...train, ...held].map((p) => p[0]));
    return d3.ticks(d3.min(steps), d3.max(steps), count).filter(Number.isInteger);
  }

  /** Those of the values whose labels do not meet on a picture of this width. */
  function apart(values, width) {
    const scale = (width - 90) / (d3.max(values) - d3.min(values));
    return values.filter(((last) => (value) => {
      const isApart = last === null || (value - last) * scale > 40;
      if (isApart) last = value;
      return isApart;
    })(null));
  }

  function figure(panel, options) {
    const host = document.createElement("figure");
    const caption = host.appendChild(document.createElement("figcaption"));
    caption.textContent = panel.title;
    if (panel.unit) caption.appendChild(document.createElement("small")).textContent = panel.unit;
    const place = host.appendChild(document.createElement("div"));
    let drawn = 0;
    new ResizeObserver(() => {
      const width = Math.round(place.clientWidth);
      if (!width || width === drawn) return;
      drawn = width;
      const { x, y, ...more } = options(panel);
      const few = Math.max(3, Math.round(width / 70));
      if (panel.values) x.ticks = apart(panel.values, width);
      if (x.isWhole) x.ticks = wholeTicks(panel, few);
      const picture = Plot.plot({
        width, height: Math.round(Math.min(0.6 * width, 230)), className: "chart",
        marginLeft: 44, marginRight: 12, marginTop: 12, marginBottom: 34,
        ariaLabel: panel.title,
        x: { ticks: few, tickSize: 0, nice: false, inset: 6, ...x },
        y: { ticks: 5, tickSize: 0, nice: true, ...y }, ...more,
      });
      picture.setAttribute("role", "img");
      place.replaceChildren(picture);
    }).observe(place);
    return host;
  }

  function legend() {
    const host = document.createElement("div");
    host.className = "legend";
    for (const run of data.runs.keys()) {
      const item = host.appendChild(document.createElement("span"));
      const key = item.appendChild(document.createElement("span"));
      key.className = `key run-${run % 8}`;
      item.append(data.runs[run]);
    }
    return host;
  }

  for (const [kind, options] of Object.entries({ curves, frontiers, histograms })) {
    const host = document.querySelector(`[data-charts="${kind}"]`);
    if (!data[kind].length) {
      host.closest("section").hidden = true;
      document.querySelector(`nav a[href="#${host.closest("section").id}"]`).hidden = true;
    }
    if (data.runs.length > 1) host.append(legend());
    for (const panel of data[kind]) host.append(figure(panel, options));
  }
})();
