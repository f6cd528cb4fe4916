// The charts of the overview: series as JSON every few seconds, drawn by uPlot, with marks for what happened.
"use strict";
(() => {
  const box = document.getElementById("charts");
  if (!box || typeof uPlot === "undefined") return;
  const EVERY_MS = 5000, HEIGHT = 190;
  const CHARTS = {
    locks: [["held", "held", "blue"], ["waiting", "waiting", "orange"]],
    waits: [["wait_p50_ms", "p50", "blue"], ["wait_p99_ms", "p99", "vermillion"]],
    charges: [["entered_per_s", "entries", "blue"], ["charged_per_s", "charges", "green"]],
    contention: [["contended_percent", "had to wait", "purple"]],
  };
  const LOGARITHMIC = new Set(["waits"]);
  const TONES = { lost: "vermillion", fenced: "vermillion", "charge-unknown": "vermillion", takeover: "orange", forced: "purple", "instance-up": "green", "instance-down": "text", "instance-stopped": "text" };
  const utc = (seconds, withSeconds) => new Date(seconds * 1000).toISOString().slice(11, withSeconds ? 19 : 16);
  const asOf = document.getElementById("charts-as-of");
  let plots = [], data = null, paused = false;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const figure = (value, unit) => value == null ? "–" : value.toLocaleString("en", value < 100 ? { maximumSignificantDigits: 3 } : { maximumFractionDigits: 0 }) + unit;

  function drawMarks(plot) {
    if (!data) return;
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.beginPath(); ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height); ctx.clip();
    for (const mark of data.marks) {
      const x = Math.round(plot.valToPos(mark.at, "x", true));
      ctx.strokeStyle = ctx.fillStyle = colour(TONES[mark.kind] ?? "soft");
      ctx.lineWidth = devicePixelRatio;
      ctx.setLineDash(mark.kind === "instance-up" || mark.kind === "instance-stopped" ? [3 * devicePixelRatio, 3 * devicePixelRatio] : []);
      ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.globalAlpha = .55; ctx.stroke(); ctx.globalAlpha = 1;
      const size = 4 * devicePixelRatio;
      ctx.beginPath();
      if (mark.kind.startsWith("instance")) ctx.rect(x - size / 2, bbox.top, size, size);
      else { ctx.moveTo(x - size, bbox.top); ctx.lineTo(x + size, bbox.top); ctx.lineTo(x, bbox.top + 1.6 * size); }
      ctx.fill();
    }
    ctx.restore();
  }

  const ticksOf = (kind, low, high) => LOGARITHMIC.has(kind) ? axes.logarithmic(low || 0.1, high || 1) : axes.linear(high || 0);

  // The points that no line leads to.
  const lone = (values) => values.flatMap((value, at) => value != null && values[at - 1] == null && values[at + 1] == null ? [at] : []);

  // A legend without a cursor over its chart says how it stands now.
  function showLast(plot) { if (data?.at.length) plot.setLegend({ idx: data.at.length - 1 }, false); }

  function make(element) {
    const kind = element.dataset.chart, lines = CHARTS[kind], unit = kind === "waits" ? " ms" : kind === "contention" ? " %" : "";
    const axis = { stroke: colour("soft"), grid: { stroke: colour("line"), width: .5 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    element.replaceChildren();
    const plot = new uPlot({
      width: Math.max(200, element.clientWidth), height: HEIGHT,
      cursor: { sync: { key: "overview" }, points: { size: 6 }, drag: { x: false, y: false } },
      legend: { live: true },
      scales: { y: { distr: LOGARITHMIC.has(kind) ? 3 : 1, range: (plot, low, high) => { const ticks = ticksOf(kind, low, high); return [ticks[0], ticks.at(-1)]; } } },
      axes: [
        { ...axis, size: 32, gap: 10, splits: (plot, index, from, until) => axes.times(from, until, Math.max(1, plot.bbox.width / devicePixelRatio / 75)), values: (plot, splits) => splits.map((each) => utc(each, splits.some((at) => at % 60))) },
        { ...axis, size: 52, splits: (plot, index, low, high) => ticksOf(kind, low, high), filter: (plot, splits) => splits, values: (plot, splits) => splits.map((each) => each.toLocaleString("en", { maximumSignificantDigits: 3 })) },
      ],
      series: [{ label: "", value: (plot, at) => at == null ? "" : utc(at, true) }, ...lines.map(([, label, name], index) => ({ label, stroke: colour(name), width: 1.75, dash: index ? [6, 3] : undefined, points: { show: true, size: 4, filter: (plot, series) => lone(plot.data[series]) }, value: (plot, value) => figure(value, unit) }))],
      hooks: { draw: [drawMarks], setCursor: [(plot) => { if (plot.cursor.idx == null) showLast(plot); }], setData: [showLast] },
    }, columns(kind), element);
    showLast(plot);
    return plot;
  }

  const columns = (kind) => [data?.at ?? [], ...CHARTS[kind].map(([key]) => data?.[key] ?? [])];
  function describe(element) {
    const last = (key) => (data?.[key] ?? []).filter((each) => each != null).at(-1);
    const words = CHARTS[element.dataset.chart].map(([key, label]) => `${label} ${figure(last(key), "")}`).join(", ");
    element.setAttribute("role", "img");
    element.setAttribute("aria-label", `${element.previousElementSibling.textContent}: now ${words}`);
  }

  function draw() {
    const elements = [...box.querySelectorAll(".chart")];
    if (!plots.length) plots = elements.map(make);
    else plots.forEach((plot, index) => plot.setData(columns(elements[index].dataset.chart)));
    elements.forEach(describe);
    fillTable();
  }

  function fillTable() {
    const details = box.querySelector("details.as-table");
    if (!details.open || !data) return;
    const keys = ["held", "waiting", "wait_p50_ms", "wait_p99_ms", "entered_per_s", "charged_per_s", "contended_percent"];
    const length = data.at.length > 1 ? data.at[1] - data.at[0] : 60;
    const rows = data.at.map((at, index) => {
      const row = document.createElement("tr");
      const cell = (text, name) => { const made = row.insertCell(); made.textContent = text; if (name) made.className = name; };
      cell(utc(at, true), "time");
      for (const key of keys) cell(figure(data[key][index], ""), "number");
      cell(data.marks.filter((mark) => mark.at >= at && mark.at < at + length).map((mark) => mark.name ? `${mark.word} ${mark.name}` : `${mark.word} ${mark.instance}`).join(", "));
      return row;
    });
    box.querySelector("#series-table tbody").replaceChildren(...rows.reverse());
  }

  async function load() {
    if (!paused && !document.hidden) {
      try {
        const answer = await fetch(box.dataset.series, { headers: { Accept: "application/json" } });
        const seen = answer.ok ? await answer.json() : null;
        // While Redis is away each instance tells what it saw last, which may be older than what is drawn already.
        if (seen && !(seen.as_of && data)) { data = seen; draw(); }
        asOf.textContent = data?.as_of ? `as of ${utc(data.as_of, true)}` : "";
      } catch { /* the next one may come through; the page says elsewhere that it is cut off */ }
    }
    setTimeout(load, EVERY_MS);
  }

  function anew() { for (const plot of plots) plot.destroy(); plots = []; if (data) draw(); }
  document.addEventListener("page:pause", (event) => { paused = event.detail.paused; });
  document.addEventListener("page:theme", anew);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", anew);
  box.querySelector("details.as-table").addEventListener("toggle", fillTable);
  new ResizeObserver(() => { const elements = box.querySelectorAll(".chart"); plots.forEach((plot, index) => plot.setSize({ width: Math.max(200, elements[index].clientWidth), height: HEIGHT })); }).observe(box);
  load();
})();
