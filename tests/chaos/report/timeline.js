// The timeline: who held which lock, from the JSON beside it, onto a canvas. All times are µs from the run's beginning.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const canvas = $("bars"), minimap = $("minimap"), stage = $("stage"), tip = $("tip");
  const WORDS = { releasing: "released", released: "released", died: "killed", lost: "found out that it was lost", until: "its lease ran out", exported: "handed on", open: "still held at the end" };
  const COLOURS = ["blue", "green", "purple", "sky", "orange", "grey"];
  const ROW = 24, LANE = 15, FAULT = 13, FAULT_LANES = 3, AXIS = 22, SHORTEST = 2000;
  const WHOLE = 0, LOWER = 2;
  let view = { from: 0, to: Math.max(1, data.length) }, rows = [], hits = [], queued = false, picked = -1;

  // What the JSON holds in small, spelled out once.
  for (const row of data.rows) {
    let at = 0;
    row.longest = 0;
    row.bars = row.bars.map(([after, length, holder, fence, end, count, lane, left, takeover]) => {
      at += after;
      row.longest = Math.max(row.longest, length + left);
      return { from: at, to: at + length, holder, fence: fence < 0 ? null : row.least + fence, end: data.ends[end], count, lane, lapses: at + length + left, takeover, commits: [] };
    });
    row.commits = row.commits.map(([at, fence]) => ({ at, fence: row.least + fence }));
    row.overlaps = [];
  }
  const overlaps = data.overlaps.map(([row, from, to, first, second, cause, explained]) => ({ row: data.rows[row], from, to, first, second, cause, explained }));
  for (const each of overlaps) each.row.overlaps.push(each);
  const lanesEnd = Array(FAULT_LANES).fill(-1);
  const faults = data.faults.map(([from, to, kind, id, who, point]) => ({ from, to, kind: data.kinds[kind].replaceAll("_", " "), id, who, point: point.replaceAll("_", " ") })).sort((a, b) => a.from - b.from);
  for (const fault of faults) {
    const free = lanesEnd.findIndex((end) => end <= fault.from);
    fault.lane = free < 0 ? FAULT_LANES - 1 : free;
    lanesEnd[fault.lane] = Math.max(lanesEnd[fault.lane], fault.to);
  }
  const lives = data.lives.map(([who, life, from, to, how]) => ({ who, life, from, to, how }));
  const stalls = data.stalls.map(([who, from, to]) => ({ who, from, to }));
  const instances = [...new Set([...lives.map((each) => each.who), ...faults.map((each) => each.who)])].filter(Boolean).sort((a, b) => a - b || (a < b ? -1 : 1));
  const HEAD = () => AXIS + FAULT_LANES * FAULT + 6 + instances.length * LANE + 6;

  // Colours come from the style sheet, resolved for the scheme in force.
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  let known = {};
  const colour = (name) => known[name] ??= (probe.style.color = `var(--${name})`, getComputedStyle(probe).color);
  const colourOf = (holder) => colour(holder < 0 ? "grey" : COLOURS[holder % COLOURS.length]);
  const nameOf = (holder) => holder < 0 ? "several holders" : /^\d+$/.test(data.holders[holder]) ? `instance ${data.holders[holder]}` : data.holders[holder];

  const seconds = (us, digits = 3) => (us / 1e6).toFixed(digits) + " s";
  const length = (us) => us < 1000 ? `${us} µs` : us < 1e6 ? `${(us / 1000).toPrecision(3)} ms` : `${(us / 1e6).toPrecision(3)} s`;
  const shortFence = (fence) => fence > 999999 ? "…" + String(fence).slice(-5) : String(fence);
  const gutter = () => canvas.clientWidth < 560 ? 92 : 176;
  const x = (at) => gutter() + (at - view.from) / (view.to - view.from) * (canvas.clientWidth - gutter());
  const timeAt = (px) => view.from + (px - gutter()) / (canvas.clientWidth - gutter()) * (view.to - view.from);

  function first(list, isBefore) {
    let low = 0, high = list.length;
    while (low < high) { const middle = (low + high) >> 1; if (isBefore(list[middle])) low = middle + 1; else high = middle; }
    return low;
  }
  const firstFrom = (list, at) => first(list, (each) => each.from < at);
  const firstAt = (list, at) => first(list, (each) => each.at < at);
  function* visible(list, longest) {
    for (let index = firstFrom(list, view.from - longest); index < list.length && list[index].from <= view.to; index++) if ((list[index].lapses ?? list[index].to) >= view.from) yield list[index];
  }

  function sized(element, height) {
    const ratio = devicePixelRatio || 1, width = element.clientWidth;
    if (element.width !== Math.round(width * ratio) || element.height !== Math.round(height * ratio)) { element.width = Math.round(width * ratio); element.height = Math.round(height * ratio); element.style.height = height + "px"; }
    const context = element.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    return context;
  }
  function clipped(pen, left, top, width, height, draw) { pen.save(); pen.beginPath(); pen.rect(left, top, width, height); pen.clip(); draw(); pen.restore(); }
  function fitted(pen, text, width) {
    if (pen.measureText(text).width <= width) return text;
    const tail = "…" + text.slice(text.lastIndexOf(":"));
    if (text.includes(":") && pen.measureText(tail).width <= width) return tail;
    let kept = text.length;
    while (kept > 1 && pen.measureText("…" + text.slice(-kept)).width > width) kept--;
    return "…" + text.slice(-kept);
  }
  function hatched(pen, left, top, width, height, tone) {
    clipped(pen, left, top, width, height, () => {
      pen.strokeStyle = tone; pen.lineWidth = 1.5; pen.beginPath();
      for (let at = left - height; at < left + width; at += 5) { pen.moveTo(at, top + height); pen.lineTo(at + height, top); }
      pen.stroke();
    });
  }

  function draw() {
    queued = false;
    const height = Math.min(HEAD() + Math.max(1, rows.length) * ROW + 4, stageMost());
    const pen = sized(canvas, height), width = canvas.clientWidth, left = gutter();
    hits = [];
    pen.fillStyle = colour("panel"); pen.fillRect(0, 0, width, height);
    const shown = [...visible(faults, longestFault)];
    clipped(pen, left, 0, width - left, height, () => { drawAxis(pen, height); drawBands(pen, shown, height); });
    clipped(pen, 0, HEAD(), width, height - HEAD(), () => drawRows(pen, shown, height));
    drawFaults(pen, shown);
    drawInstances(pen, shown);
    pen.strokeStyle = colour("line-strong"); pen.lineWidth = 1;
    pen.beginPath(); pen.moveTo(0, HEAD() - .5); pen.lineTo(width, HEAD() - .5); pen.moveTo(left - .5, 0); pen.lineTo(left - .5, height); pen.stroke();
    drawErrors(pen, height);
    drawMinimap();
    canvas.closest("section").dataset.drawn = "yes";
  }
  const later = () => { if (!queued) { queued = true; requestAnimationFrame(draw); } };
  const longestFault = faults.reduce((most, each) => Math.max(most, each.to - each.from), 0);

  function drawAxis(pen, height) {
    const span = view.to - view.from, most = Math.max(2, (canvas.clientWidth - gutter()) / 90);
    const step = [1, 2, 5].flatMap((digit) => [2, 3, 4, 5, 6, 7, 8, 9].map((power) => digit * 10 ** power)).sort((a, b) => a - b).find((each) => span / each <= most) ?? 1e9;
    pen.lineWidth = 1;
    for (let at = Math.ceil(view.from / step) * step; at <= view.to; at += step) {
      const px = Math.round(x(at)) + .5;
      pen.strokeStyle = colour("line"); pen.beginPath(); pen.moveTo(px, AXIS - 4); pen.lineTo(px, height); pen.stroke();
      pen.fillStyle = colour("soft"); pen.textAlign = px - gutter() < 24 ? "left" : "center"; pen.fillText(seconds(at, Math.max(0, 6 - Math.floor(Math.log10(step)))), px, AXIS / 2);
    }
  }
  function drawBands(pen, shown, height) {
    for (const fault of shown) if (!fault.who) { pen.fillStyle = colour("band"); pen.fillRect(x(fault.from), AXIS, Math.max(2, x(fault.to) - x(fault.from)), height); }
    if (data.healing !== null && data.healing >= view.from && data.healing <= view.to) {
      pen.strokeStyle = colour("good"); pen.setLineDash([4, 3]); pen.beginPath(); pen.moveTo(x(data.healing), AXIS); pen.lineTo(x(data.healing), height); pen.stroke(); pen.setLineDash([]);
    }
  }
  function label(pen, text, y, bold) {
    pen.textAlign = "left"; pen.fillStyle = colour(bold ? "text" : "soft");
    pen.fillText(fitted(pen, text, gutter() - 14), 8, y);
  }
  function drawFaults(pen, shown) {
    label(pen, "Faults", AXIS + FAULT_LANES * FAULT / 2);
    const right = canvas.clientWidth;
    clipped(pen, gutter(), 0, right - gutter(), HEAD(), () => shown.forEach((fault, index) => {
      const from = x(fault.from), wide = Math.max(3, x(fault.to) - from), top = AXIS + fault.lane * FAULT;
      pen.fillStyle = colour(fault.who ? "purple" : "orange"); pen.fillRect(from, top + 2, wide, FAULT - 4);
      hits.push({ from, to: from + wide, top, bottom: top + FAULT, text: () => faultWords(fault), order: 1 });
      const next = shown.slice(index + 1).find((each) => each.lane === fault.lane), room = (next ? x(next.from) : right) - from - wide - 8;
      const text = fault.kind + (fault.point ? ` at ${fault.point}` : "") + (fault.who ? `, ${fault.who}` : "");
      if (pen.measureText(text).width < room) { pen.fillStyle = colour("text"); pen.textAlign = "left"; pen.fillText(text, from + wide + 4, top + FAULT / 2); }
    }));
  }
  const faultWords = (fault) => `Fault ${fault.id}: ${fault.kind}${fault.point ? ` at ${fault.point}` : ""}\n${fault.who ? `instance ${fault.who}` : "for all instances"}\n${seconds(fault.from)}, for ${length(fault.to - fault.from)}`;

  function drawInstances(pen, shown) {
    instances.forEach((who, index) => {
      const top = AXIS + FAULT_LANES * FAULT + 6 + index * LANE, tone = colourOf(data.holders.indexOf(who));
      label(pen, /^\d+$/.test(who) ? `Instance ${who}` : who, top + LANE / 2);
      clipped(pen, gutter(), top, canvas.clientWidth - gutter(), LANE, () => {
        for (const life of lives) if (life.who === who && life.to >= view.from && life.from <= view.to) {
          const from = x(life.from), to = x(life.to);
          pen.globalAlpha = .35; pen.fillStyle = tone; pen.fillRect(from, top + 3, Math.max(1, to - from), LANE - 6); pen.globalAlpha = 1;
          hits.push({ from, to, top, bottom: top + LANE, text: () => `Instance ${who}, life ${life.life}\n${seconds(life.from)} to ${seconds(life.to)}${life.how ? `, then ${life.how}` : ""}`, order: 3 });
          if (life.how) cross(pen, to, top + LANE / 2, life.how === "killed" ? colour("text") : colour("soft"));
          const px = Math.max(from, gutter()) + 5;
          if (to - px > 60) { pen.fillStyle = colour("text"); pen.textAlign = "left"; pen.fillText(`life ${life.life}`, px, top + LANE / 2); }
        }
        for (const each of [...stalls, ...shown.filter((fault) => fault.kind === "freeze" || fault.kind === "delay")]) if (each.who === who && each.to >= view.from && each.from <= view.to) {
          const from = x(each.from), wide = Math.max(2, x(each.to) - from);
          pen.fillStyle = colour("panel"); pen.fillRect(from, top + 3, wide, LANE - 6); hatched(pen, from, top + 3, wide, LANE - 6, colour("text"));
          hits.push({ from, to: from + wide, top, bottom: top + LANE, text: () => each.kind ? faultWords(each) : `Instance ${who} stood still\n${seconds(each.from)}, for ${length(each.to - each.from)}`, order: 2 });
        }
      });
    });
  }
  function cross(pen, px, y, tone) { pen.strokeStyle = tone; pen.lineWidth = 2; pen.beginPath(); pen.moveTo(px - 4, y - 4); pen.lineTo(px + 4, y + 4); pen.moveTo(px + 4, y - 4); pen.lineTo(px - 4, y + 4); pen.stroke(); }

  function drawRows(pen, shown, height) {
    const first = Math.floor(stage.scrollTop / ROW), offset = HEAD() - stage.scrollTop % ROW;
    const still = shown.filter((fault) => fault.who && fault.to - fault.from > 0 && (fault.kind === "freeze" || fault.kind === "delay"));
    if (!rows.length) label(pen, "No such lock", HEAD() + ROW / 2);
    for (let index = first; index < rows.length && offset + (index - first) * ROW < height; index++) {
      const row = rows[index], top = offset + (index - first) * ROW;
      pen.strokeStyle = colour("line"); pen.lineWidth = 1; pen.beginPath(); pen.moveTo(0, Math.round(top + ROW) - .5); pen.lineTo(canvas.clientWidth, Math.round(top + ROW) - .5); pen.stroke();
      label(pen, row.name, top + ROW / 2, true);
      hits.push({ from: 0, to: gutter(), top, bottom: top + ROW, text: () => `${row.name}\n${row.holds.toLocaleString("en")} holds, ${row.overlaps.length} overlaps`, order: 4 });
      clipped(pen, gutter(), top, canvas.clientWidth - gutter(), ROW, () => {
        let filled = -1; // whatever would fall on pixels that are drawn already is left out, unless something befell it
        for (const bar of visible(row.bars, row.longest)) {
          const right = x(bar.to);
          if (right - filled < .75 && bar.end === "releasing" && !bar.takeover && bar.lane === WHOLE) continue;
          filled = Math.max(filled, right);
          drawBar(pen, row, bar, top, still);
        }
        for (const each of row.overlaps) if (each.to >= view.from && each.from <= view.to) drawOverlap(pen, each, top);
        drawCommits(pen, row, top);
      });
    }
  }
  function drawBar(pen, row, bar, top, still) {
    const from = x(bar.from), wide = Math.max(1, x(bar.to) - from), tone = colourOf(bar.holder);
    const half = bar.lane !== WHOLE, y = top + (bar.lane === LOWER ? ROW / 2 + .5 : 4), high = half ? ROW / 2 - 4 : ROW - 8;
    if (bar.lapses > bar.to) {
      pen.strokeStyle = tone; pen.setLineDash([3, 3]); pen.lineWidth = 1.25; pen.strokeRect(from + wide, y + 1.5, Math.max(1, x(bar.lapses) - from - wide), high - 3); pen.setLineDash([]);
      hits.push({ from: from + wide, to: x(bar.lapses), top, bottom: top + ROW, text: () => `${row.name}\nthe dead holder's lease: ${length(bar.lapses - bar.to)} left`, order: 2 });
    }
    pen.globalAlpha = bar.count > 1 ? .5 : 1; pen.fillStyle = tone; pen.fillRect(from, y, wide, high); pen.globalAlpha = 1;
    if (bar.holder >= 0 && wide >= 6) for (const fault of still) if (fault.who === data.holders[bar.holder] && fault.to > bar.from && fault.from < bar.to) {
      const begin = Math.max(from, x(fault.from)), end = Math.min(from + wide, x(fault.to));
      if (end - begin > 2) hatched(pen, begin, y, end - begin, high, colour("on-bar"));
    }
    if (bar.takeover && wide > 2) { pen.fillStyle = colour("text"); pen.beginPath(); pen.moveTo(from, y); pen.lineTo(from + 6, y + high / 2); pen.lineTo(from, y + high); pen.fill(); }
    if (bar.end === "died") cross(pen, from + wide, y + high / 2, colour("text"));
    const text = bar.count > 1 ? `${bar.count} holds` : bar.fence === null ? "" : shortFence(bar.fence);
    if (!half && wide > 56 && pen.measureText(text).width < wide - 16) {
      const px = Math.max(from, gutter()) + 9, room = pen.measureText(text).width + 4;
      pen.textAlign = "left";
      pen.fillStyle = bar.count > 1 ? colour("panel") : tone; pen.fillRect(px - 2, y, room, high);
      pen.fillStyle = bar.count > 1 ? colour("text") : colour("on-bar"); pen.fillText(text, px, y + high / 2 + .5);
    }
    hits.push({ from: from - 2, to: from + wide + 2, top: half ? y : top, bottom: half ? y + high : top + ROW, text: () => barWords(row, bar), order: 1 });
  }
  function barWords(row, bar) {
    const commits = row.commits.filter((each) => each.at >= bar.from && each.at <= bar.to);
    if (bar.count > 1) return `${row.name}\n${bar.count} holds in a row, ${nameOf(bar.holder)}\n${seconds(bar.from)} to ${seconds(bar.to)}`;
    return `${row.name}\n${nameOf(bar.holder)}${bar.fence === null ? "" : `, fence ${bar.fence}`}\n${seconds(bar.from)}, for ${length(bar.to - bar.from)}: ${WORDS[bar.end]}${bar.takeover ? "\ntook over from a holder whose lease had lapsed" : ""}${bar.lapses > bar.to ? `\nits lease had ${length(bar.lapses - bar.to)} left` : ""}${commits.map((each) => `\ncommitted at ${seconds(each.at, 6)}`).join("")}`;
  }
  function drawOverlap(pen, each, top) {
    const from = x(each.from), wide = Math.max(3, x(each.to) - from), tone = colour("red");
    if (each.explained) { pen.globalAlpha = .22; pen.fillStyle = tone; pen.fillRect(from, top + 1, wide, ROW - 2); pen.globalAlpha = 1; hatched(pen, from, top + 1, wide, ROW - 2, tone); }
    else { pen.globalAlpha = .8; pen.fillStyle = tone; pen.fillRect(from, top + 1, wide, ROW - 2); pen.globalAlpha = 1; }
    pen.strokeStyle = tone; pen.lineWidth = overlaps[picked] === each ? 3.5 : 1.5; pen.strokeRect(from + .5, top + 1.5, wide - 1, ROW - 3);
    if (!each.explained && wide > 12) { pen.fillStyle = colour("on-red"); pen.textAlign = "center"; pen.font = "bold 13px system-ui, sans-serif"; pen.fillText("!", from + wide / 2, top + ROW / 2); pen.font = "11px system-ui, sans-serif"; }
    hits.push({ from: from - 2, to: from + wide + 2, top, bottom: top + ROW, text: () => overlapWords(each), order: 0 });
  }
  const overlapWords = (each) => `Overlap on ${each.row.name}\n${nameOf(each.first)} and ${nameOf(each.second)}\n${seconds(each.from)}, for ${length(each.to - each.from)}\n${each.cause}`;
  function drawCommits(pen, row, top) {
    const ROOM = 9;
    let index = firstAt(row.commits, view.from), last = -ROOM;
    for (; index < row.commits.length && row.commits[index].at <= view.to; index++) {
      const px = x(row.commits[index].at), next = index + 1 < row.commits.length ? x(row.commits[index + 1].at) : Infinity;
      pen.fillStyle = colour("text");
      if (px - last >= ROOM && next - px >= ROOM) {
        pen.strokeStyle = colour("panel"); pen.lineWidth = 1;
        pen.beginPath(); pen.moveTo(px, top + ROW - 9); pen.lineTo(px + 4.5, top + ROW - 1); pen.lineTo(px - 4.5, top + ROW - 1); pen.closePath(); pen.fill(); pen.stroke();
      } else if (px - last >= 1.5) pen.fillRect(px - .5, top + ROW - 4, 1, 3);
      else continue;
      last = px;
    }
  }
  function drawErrors(pen, height) {
    for (const [at] of data.errors) if (at >= view.from && at <= view.to) {
      const px = x(at);
      pen.strokeStyle = pen.fillStyle = colour("red"); pen.lineWidth = 1.5; pen.beginPath(); pen.moveTo(px, 4); pen.lineTo(px, height); pen.stroke();
      pen.beginPath(); pen.moveTo(px - 5, 0); pen.lineTo(px + 5, 0); pen.lineTo(px, 8); pen.fill();
    }
  }

  // The strip above: how many holds at a time, over the whole run, and which part of it is looked at.
  const BINS = 400, heat = Array(BINS).fill(0);
  for (const row of data.rows) for (const bar of row.bars) heat[Math.min(BINS - 1, Math.floor(bar.from / Math.max(1, data.length) * BINS))] += bar.count;
  function drawMinimap() {
    const pen = sized(minimap, 44), width = minimap.clientWidth, scale = width / Math.max(1, data.length), most = Math.max(1, ...heat);
    for (const fault of faults) if (!fault.who) { pen.fillStyle = colour("band"); pen.fillRect(fault.from * scale, 0, Math.max(1, (fault.to - fault.from) * scale), 44); }
    pen.fillStyle = colour("s3");
    heat.forEach((count, index) => { const high = count / most * 34; pen.fillRect(index * width / BINS, 44 - high, Math.ceil(width / BINS), high); });
    pen.fillStyle = colour("red");
    for (const each of overlaps) { pen.globalAlpha = each.explained ? .6 : 1; pen.fillRect(each.from * scale - .75, 0, 1.5, each.explained ? 8 : 44); }
    pen.globalAlpha = 1;
    for (const [at] of data.errors) pen.fillRect(at * scale - 1, 0, 2.5, 44);
    const from = view.from * scale, wide = Math.max(4, (view.to - view.from) * scale);
    pen.globalAlpha = .16; pen.fillStyle = colour("accent"); pen.fillRect(from, 0, wide, 44); pen.globalAlpha = 1;
    pen.strokeStyle = colour("accent"); pen.lineWidth = 1.5; pen.strokeRect(from + .75, .75, wide - 1.5, 42.5);
  }

  function show(from, to) {
    const most = Math.max(1, data.length), span = Math.min(most, Math.max(SHORTEST, to - from));
    const begin = Math.min(Math.max(0, from), most - span);
    view = { from: begin, to: begin + span };
    fill();
    tell(`Showing ${seconds(view.from)} to ${seconds(view.to)} of ${seconds(data.length, 1)}; ${rows.length} of ${data.of.toLocaleString("en")} locks.${data.gap ? ` Holds less than ${length(data.gap)} apart are drawn as one, in a paler tone.` : ""}`);
    later();
  }
  const tell = (text) => { $("readout").textContent = text; };
  const zoom = (factor, at = (view.from + view.to) / 2) => show(at - (at - view.from) * factor, at + (view.to - at) * factor);
  const pan = (share) => show(view.from + (view.to - view.from) * share, view.to + (view.to - view.from) * share);
  const around = (at, half = data.lease * 2.5) => show(at - half, at + half);
  function reveal(row) {
    if (!rows.includes(row)) { $("named").value = ""; if ($("rows").value !== "hot") $("rows").value = "all"; show(view.from, view.to); }
    const index = rows.indexOf(row), visibleRows = Math.floor((stage.clientHeight - HEAD()) / ROW), first = stage.scrollTop / ROW;
    if (index < first || index >= first + visibleRows) stage.scrollTop = Math.max(0, (index - visibleRows / 2) * ROW);
  }
  function pickOverlap(step) {
    if (!overlaps.length) return;
    const middle = (view.from + view.to) / 2, at = picked >= 0 ? picked + step : step > 0 ? overlaps.findIndex((each) => each.from >= middle) : overlaps.findLastIndex((each) => each.from <= middle);
    picked = Math.min(overlaps.length - 1, Math.max(0, at));
    const each = overlaps[picked];
    around((each.from + each.to) / 2, Math.max(data.lease * 1.5, (each.to - each.from) * 2));
    reveal(each.row);
    tell(`Overlap ${picked + 1} of ${overlaps.length}. ${overlapWords(each).replaceAll("\n", ". ")}.`);
  }
  function jump(at) {
    const beside = overlaps.find((each) => each.from <= at + 1000 && each.to >= at - 1000), text = data.errors.find(([when]) => Math.abs(when - at) < 1000)?.[1];
    around(at);
    if (beside) { picked = overlaps.indexOf(beside); reveal(beside.row); }
    const named = !beside && text && data.rows.find((row) => text.split(/[\s,;:]+/).includes(row.name.split(":").pop()) || text.includes(row.name));
    if (named) reveal(named);
    if (text) tell(`${seconds(at)}. ${text}`);
  }
  const actions = { in: () => zoom(.5), out: () => zoom(2), whole: () => show(0, data.length), next: () => pickOverlap(1), previous: () => pickOverlap(-1), error: () => data.errors.length && jump(data.errors[0][0]) };

  function choose() { picked = -1; show(view.from, view.to); }
  // The hottest in view are chosen anew as the view moves, and stand in the order of their heat over the whole run.
  function chosen() {
    const which = $("rows").value, named = $("named").value.trim().toLowerCase();
    const fitting = data.rows.filter((row) => row.name.toLowerCase().includes(named));
    if (which === "all") return fitting;
    if (which === "overlap") return fitting.filter((row) => row.overlaps.length);
    const heat = new Map(fitting.map((row) => [row, inView(row)]));
    const hottest = new Set([...heat].filter(([, count]) => count).sort((a, b) => b[1] - a[1]).slice(0, data.hottest).map(([row]) => row));
    return fitting.filter((row) => hottest.has(row) || row.overlaps.some((each) => each.to >= view.from && each.from <= view.to));
  }
  const inView = (row) => Math.max(0, firstFrom(row.bars, view.to) - firstFrom(row.bars, view.from - row.longest));
  function fill() {
    rows = chosen();
    const height = HEAD() + Math.max(1, rows.length) * ROW + 4;
    $("spacer").style.height = Math.max(0, height - Math.min(height, stageMost())) + "px";
  }
  const stageMost = () => matchMedia("print").matches ? 4000 : parseFloat(getComputedStyle(stage).maxHeight) || 640;

  // Pointer, wheel, keys, links.
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => { drag = { at: event.clientX, view }; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointerup", () => { drag = null; });
  canvas.addEventListener("pointercancel", () => { drag = null; });
  canvas.addEventListener("pointermove", (event) => {
    if (drag) {
      const moved = (drag.at - event.clientX) / (canvas.clientWidth - gutter()) * (drag.view.to - drag.view.from);
      if (Math.abs(drag.at - event.clientX) > 3) { tip.hidden = true; show(drag.view.from + moved, drag.view.to + moved); return; }
    }
    const box = canvas.getBoundingClientRect(), px = event.clientX - box.left, y = event.clientY - box.top;
    const hit = hits.filter((each) => px >= each.from && px <= each.to && y >= each.top && y < each.bottom && (px >= gutter() || !each.from) && (y < HEAD() || each.bottom > HEAD())).sort((a, b) => a.order - b.order)[0];
    tip.hidden = !hit;
    if (!hit) return;
    tip.textContent = hit.text();
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = (event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18) + "px";
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("dblclick", (event) => zoom(.4, timeAt(event.clientX - canvas.getBoundingClientRect().left)));
  canvas.addEventListener("wheel", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) { event.preventDefault(); zoom(Math.exp(event.deltaY * .002), timeAt(event.clientX - canvas.getBoundingClientRect().left)); }
    else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) { event.preventDefault(); pan(event.deltaX / canvas.clientWidth); }
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = { ArrowLeft: () => pan(-.2), ArrowRight: () => pan(.2), ArrowUp: () => { stage.scrollTop -= ROW * 3; }, ArrowDown: () => { stage.scrollTop += ROW * 3; }, "+": actions.in, "=": actions.in, "-": actions.out, 0: actions.whole, Home: () => show(0, view.to - view.from), End: () => show(data.length - (view.to - view.from), data.length), n: actions.next, p: actions.previous, e: actions.error };
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  const moveTo = (event) => { const at = event.offsetX / minimap.clientWidth * data.length, half = (view.to - view.from) / 2; show(at - half, at + half); };
  minimap.addEventListener("pointerdown", (event) => { minimap.setPointerCapture(event.pointerId); picked = -1; moveTo(event); });
  minimap.addEventListener("pointermove", (event) => { if (event.buttons) moveTo(event); });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-jump]"), button = event.target.closest("[data-do]");
    if (link) jump(Math.round(Number(link.dataset.jump) * 1e6));
    if (button) actions[button.dataset.do]();
  });
  $("rows").addEventListener("change", choose);
  $("named").addEventListener("input", choose);
  stage.addEventListener("scroll", later);
  const again = () => { known = {}; legend(); show(view.from, view.to); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  addEventListener("beforeprint", () => { known = {}; fill(); draw(); });
  addEventListener("afterprint", again);
  new ResizeObserver(later).observe(stage);

  function legend() {
    const item = (text, background, extra = "") => { const span = document.createElement("span"), swatch = document.createElement("i"); swatch.className = "swatch"; swatch.style.cssText = `background:${background};${extra}`; span.append(swatch, text); return span; };
    const glyph = (sign, text) => { const span = document.createElement("span"); span.textContent = `${sign} ${text}`; return span; };
    const stripes = (tone) => `repeating-linear-gradient(135deg, ${tone} 0 2px, transparent 2px 5px)`;
    const programs = data.holders.filter((who) => !/^\d+$/.test(who)).length;
    $("legend").replaceChildren(
      ...data.holders.slice(0, COLOURS.length).map((_, index) => item(nameOf(index), `var(--${COLOURS[index]})`)),
      ...(data.holders.length > COLOURS.length ? [glyph("", `and ${data.holders.length - COLOURS.length} more${programs ? ", programs of their own among them" : ""}`)] : []),
      glyph("✕", "killed"), item("what was left of its lease", "none", "border:1.5px dashed var(--soft)"), glyph("▶", "took over"), glyph("▲", "commit"), item("frozen or stalled", stripes("var(--text)")),
      item("overlap with a cause", stripes("var(--red)"), "border:1.5px solid var(--red)"), item("overlap without", "var(--red)"), item("fault for all", "var(--band)", "border:1px solid var(--orange)"),
    );
  }

  document.querySelector(".controls").hidden = false;
  document.querySelector("[data-do=error]").disabled = !data.errors.length;
  for (const name of ["next", "previous"]) document.querySelector(`[data-do=${name}]`).disabled = !overlaps.length;
  $("rows").options[0].textContent = `the ${data.hottest} hottest in view`;
  legend();
  const death = data.rows.flatMap((row) => row.bars).find((bar) => bar.end === "died" && bar.lapses > bar.to);
  if (data.errors.length) jump(data.errors[0][0]); else if (overlaps.length) around(overlaps[0].from); else if (death) around(death.to); else show(0, data.length);
})();
