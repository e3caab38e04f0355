// The report of an evaluation. Items are mistakes, and some correct images as examples; see page.py.
const names = DATA.names, K = names.length;
const items = { target: unpack(DATA.items.target), top: unpack(DATA.items.top), probability: unpack(DATA.items.probability), correct: unpack(DATA.items.correct) };
const width = DATA.items.top.shape[1], thumbs = new Map(DATA.thumbs);
const cells = new Map(), images = new Map();  // "true,predicted" -> images counted; -> items
const pairs = unpack(DATA.pairs), rows = DATA.rows, sizes = new Float64Array(K), hits = new Float64Array(K);
for (const row of rows) { sizes[row.label] = row.n; hits[row.label] = row.top1; cells.set(`${row.label},${row.label}`, row.top1); }
for (let i = 0; i < pairs.length; i += 3) cells.set(`${pairs[i]},${pairs[i + 1]}`, pairs[i + 2]);
for (let i = 0; i < items.target.length; i++) {
  const key = items.correct[i] ? `${items.target[i]},${items.target[i]}` : `${items.target[i]},${items.top[i * width]}`;
  if (!images.has(key)) images.set(key, []);
  images.get(key).push(i);
}
const cellCount = (a, b) => cells.get(`${a},${b}`) || 0;

function shot(i) {
  const target = items.target[i], top = items.top.subarray(i * width, (i + 1) * width), first = top[0];
  const url = thumbs.get(i), bars = [];
  top.forEach((label, rank) => {
    const p = items.probability[i * width + rank], kind = label === target ? "correct" : rank === 0 && !items.correct[i] ? "wrong" : "";
    bars.push(el("span", { class: kind, title: names[label] }, names[label]),
      el("div", { class: "bar" }, el("i", { style: `width:${100 * p}%;background:var(--${kind || "muted"})` })), el("span", { class: "num" }, percent(p)));
  });
  return el("div", { class: "shot", "data-item": i },
    el("div", { class: "frame" }, url ? el("img", { src: url, alt: `An image of ${names[target]}`, class: DATA.small ? "pixels" : null, loading: "lazy" }) : "not in this page"),
    el("div", {}, "true: ", el("b", { class: "correct" }, names[target])),
    el("div", { style: "margin-bottom:5px" }, items.correct[i] ? "correct" : ["predicted: ", el("b", { class: "wrong" }, names[first])]),
    el("div", { class: "top" }, bars), el("div", { class: "file" }, DATA.items.name[i]));
}
function gallery(list, total) {
  const most = 60, withImage = [...list].sort((a, b) => thumbs.has(b) - thumbs.has(a));
  const kept = withImage.slice(0, most), without = total - kept.length;
  return [el("div", { class: "shots" }, kept.map(shot)),
    without > 0 ? el("p", { class: "note", style: "margin-top:10px" }, `${count(without)} more are not shown here.`) : null];
}
function openCell(a, b) {
  const list = images.get(`${a},${b}`) || [], total = cellCount(a, b);
  const title = a === b ? `${names[a]}: ${count(total)} of ${count(sizes[a])} correct` : `${names[a]} predicted as ${names[b]}: ${count(total)} of ${count(sizes[a])}`;
  const back = a !== b && cellCount(b, a) ? el("button", { type: "button", onclick: () => openCell(b, a) }, `The other way round: ${count(cellCount(b, a))}`) : null;
  openDialog(title, el("div", { class: "controls" }, back), list.length ? gallery(list, total) : el("p", { class: "empty" }, "No images of this cell are in the page."));
}
function openClass(a) {
  const list = [];
  for (const [key, some] of images) if (key.startsWith(`${a},`) && key !== `${a},${a}`) list.push(...some);
  const wrong = sizes[a] - hits[a];
  openDialog(`${names[a]}: ${count(wrong)} of ${count(sizes[a])} wrong`, list.length ? gallery(list, wrong) : el("p", { class: "empty" }, "No mistakes."));
}

// The pairs that are confused most, both directions together
function drawPairs() {
  const both = DATA.both;
  if (!both.length) return;
  const chosen = DATA.shown;
  show($("most-shots"), chosen.map(shot));
  const most = both[0][2];
  const line = ([a, b, n, ab, ba]) => el("tr", { class: "link", tabindex: "0", onclick: () => openBoth(a, b), onkeydown: (event) => { if (event.key === "Enter") openBoth(a, b); } },
    el("td", {}, `${names[a]} · ${names[b]}`), el("td", { style: "width:26%" }, el("div", { class: "bar" }, el("i", { style: `width:${100 * n / most}%;background:var(--wrong)` }))),
    el("td", { class: "num" }, count(n)), el("td", { class: "num wide", title: `${names[a]} as ${names[b]}, and the other way round` }, `${ab} + ${ba}`));
  show($("pairs"), el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "classes"), el("th", { colspan: 2 }, "images confused"), el("th", { class: "num wide" }, "each way"))),
    el("tbody", {}, both.slice(0, 10).map(line))));
}
function openBoth(a, b) {
  const list = [...(images.get(`${a},${b}`) || []), ...(images.get(`${b},${a}`) || [])];
  openDialog(`${names[a]} and ${names[b]}: ${count(cellCount(a, b))} one way, ${count(cellCount(b, a))} the other`, gallery(list, cellCount(a, b) + cellCount(b, a)));
}

// The matrix: whole for few classes, else a window over a map of all
const FEW = 20;
const view = { rows: [], columns: [], size: matchMedia("(max-width: 560px)").matches ? 8 : 12 };
function grid() {
  const ramp = ramps().single;
  const short = view.columns.every((b) => names[b].length < 4);
  const head = el("tr", {}, el("th", {}), view.columns.map((b) => el("th", { scope: "col", title: names[b] }, el("span", { class: short ? "short" : null }, names[b]))));
  const body = view.rows.map((a) => el("tr", {}, el("th", { scope: "row", title: names[a] }, names[a]), view.columns.map((b) => {
    const n = cellCount(a, b), shade = ramp(sizes[a] ? Math.sqrt(n / sizes[a]) : 0);
    return el("td", { class: a === b ? "self" : null }, el("button", { type: "button", disabled: !n, "data-cell": `${a},${b}`, onclick: () => openCell(a, b),
      "aria-label": `${names[a]} predicted as ${names[b]}: ${n} images`, title: `${names[a]} → ${names[b]}: ${n} of ${sizes[a]}`,
      style: `background:${paint(shade)};color:${inkOn(shade)}` }, n ? (n > 999 ? `${Math.round(n / 1000)}k` : String(n)) : ""));
  })));
  return el("div", { class: "scroll" }, el("table", { class: view.rows.length <= 12 ? "matrix roomy" : "matrix" }, el("thead", {}, head), el("tbody", {}, body)));
}
function around(a) {  // a class, and those it is confused with most
  const near = new Map();
  for (let i = 0; i < pairs.length; i += 3) {
    if (pairs[i] === a) near.set(pairs[i + 1], (near.get(pairs[i + 1]) || 0) + pairs[i + 2]);
    if (pairs[i + 1] === a) near.set(pairs[i], (near.get(pairs[i]) || 0) + pairs[i + 2]);
  }
  const list = [a, ...[...near].sort((p, q) => q[1] - p[1] || p[0] - q[0]).slice(0, view.size - 1).map(([label]) => label)];
  view.rows = view.columns = list;
}
function drawMatrix() {
  const body = $("matrix-body"), all = Array.from({ length: K }, (_, i) => i);
  if (K <= FEW) {
    view.rows = view.columns = all;
    const draw = () => show(body, grid());
    draw(); onTheme(draw);
    return;
  }
  const step = Math.ceil(K / 250), side = Math.ceil(K / step), map = new Float32Array(side * side);
  const put = (a, b, n) => { const i = Math.floor(a / step) * side + Math.floor(b / step); map[i] = Math.max(map[i], sizes[a] ? n / sizes[a] : 0); };
  for (const row of rows) put(row.label, row.label, row.top1);
  for (let i = 0; i < pairs.length; i += 3) put(pairs[i], pairs[i + 1], pairs[i + 2]);
  const canvas = el("canvas", { width: side, height: side, id: "overview", tabindex: "0", role: "application", "aria-label": "All classes. Arrow keys move the window.", style: "width:100%;image-rendering:pixelated;cursor:crosshair;border:1px solid var(--line);touch-action:pan-y" });
  const frame = el("div", { style: "position:absolute;border:2px solid var(--wrong);pointer-events:none" });
  const detail = el("div", {}), title = el("p", { class: "axis" });
  const options = el("datalist", { id: "class-names" }, names.map((name) => el("option", { value: name })));
  const search = el("input", { type: "search", list: "class-names", placeholder: "name of a class", id: "matrix-class", onchange: () => pick() });
  const size = el("select", { onchange: () => { view.size = Number(size.value); again(); } }, [8, 12, 16, 24].map((n) => el("option", { value: n, selected: n === view.size }, `${n} × ${n}`)));
  let again = () => {}, corner = null;
  function update() {
    show(detail, grid());
    frame.style.display = corner ? "block" : "none";
    if (corner) frame.style.cssText += `;left:${100 * corner[1] / K}%;top:${100 * corner[0] / K}%;width:${100 * view.size / K}%;height:${100 * view.size / K}%`;
  }
  function pick() {
    const label = names.indexOf(search.value);
    if (label < 0) { title.textContent = "No class has exactly this name."; return; }
    focus(label);
  }
  function focus(label) {
    corner = null; again = () => focus(label); around(label); search.value = names[label];
    title.textContent = `${names[label]} and the classes it is confused with most, in both directions`;
    update();
  }
  function windowAt(row, column) {
    const clamp = (v) => Math.max(0, Math.min(K - view.size, Math.round(v)));
    corner = [clamp(row), clamp(column)]; again = () => windowAt(...corner);
    view.rows = all.slice(corner[0], corner[0] + view.size); view.columns = all.slice(corner[1], corner[1] + view.size);
    title.textContent = `rows ${corner[0]} to ${corner[0] + view.size - 1}, columns ${corner[1]} to ${corner[1] + view.size - 1} of ${count(K)} classes`;
    update();
  }
  const at = (event) => { const box = canvas.getBoundingClientRect(); windowAt((event.clientY - box.top) / box.height * K - view.size / 2, (event.clientX - box.left) / box.width * K - view.size / 2); };
  canvas.addEventListener("pointerdown", at);
  canvas.addEventListener("pointermove", (event) => { if (event.buttons) at(event); });
  canvas.addEventListener("keydown", (event) => {
    const [dy, dx] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] || [0, 0];
    if (!dx && !dy) return;
    event.preventDefault();
    const [row, column] = corner || [0, 0];
    windowAt(row + dy * view.size / 2, column + dx * view.size / 2);
  });
  function drawAll() {
    const ramp = ramps().single, context = canvas.getContext("2d"), data = context.createImageData(side, side);
    for (let i = 0; i < map.length; i++) { const shade = ramp(map[i] ? .12 + .88 * Math.sqrt(map[i]) : 0); data.data.set([...shade, 255], 4 * i); }
    context.putImageData(data, 0, 0);
  }
  show(body, el("div", { class: "controls" }, el("label", {}, "around a class", search, options), el("label", {}, "window", size)),
    el("div", { class: "columns", style: "grid-template-columns:minmax(0,1fr) 250px", id: "matrix-columns" },
      el("div", {}, title, detail),
      el("div", {}, el("p", { class: "axis" }, `all ${count(K)} classes` + (step > 1 ? `, ${step} × ${step} a dot` : "") + ": press to look closer"), el("div", { style: "position:relative" }, canvas, frame))));
  if (matchMedia("(max-width: 860px)").matches) $("matrix-columns").style.gridTemplateColumns = "minmax(0,1fr)";
  drawAll(); onTheme(() => { drawAll(); update(); });
  focus(DATA.both.length ? DATA.both[0][0] : 0);
}

// The table of classes
const COLUMNS = [["class", (r) => names[r.label]], ["n", (r) => r.n], ["top-1", (r) => r.top1 / r.n], ["top-5", (r) => r.top5 / r.n], ["confidence", (r) => r.confidence], ["most often predicted as", (r) => r.count]];
const sorting = { column: 2, up: true, filter: "" };
function drawClasses() {
  const body = $("classes-body"), status = el("span", { class: "note", role: "status" }), tableBody = el("tbody", {}), heads = [];
  const search = el("input", { type: "search", placeholder: "filter by name", id: "class-filter", oninput: () => { sorting.filter = search.value.toLowerCase(); update(); } });
  COLUMNS.forEach(([title], i) => heads.push(el("th", { scope: "col", class: [1, 2, 3, 4].includes(i) ? `num${i > 2 ? " wide" : ""}` : null },
    el("button", { type: "button", onclick: () => { sorting.up = sorting.column === i ? !sorting.up : i !== 5; sorting.column = i; update(); } }, title))));
  function update() {
    const value = COLUMNS[sorting.column][1], way = sorting.up ? 1 : -1;
    const kept = rows.filter((r) => names[r.label].toLowerCase().includes(sorting.filter));
    kept.sort((p, q) => { const a = value(p), b = value(q); return way * (a < b ? -1 : a > b ? 1 : 0) || p.label - q.label; });
    heads.forEach((head, i) => {
      head.setAttribute("aria-sort", i === sorting.column ? (sorting.up ? "ascending" : "descending") : "none");
      head.firstChild.textContent = COLUMNS[i][0] + (i === sorting.column ? (sorting.up ? " ▲" : " ▼") : "");
    });
    show(tableBody, kept.map((r) => el("tr", { class: "link", tabindex: "0", onclick: () => openClass(r.label), onkeydown: (event) => { if (event.key === "Enter") openClass(r.label); } },
      el("td", {}, names[r.label]), el("td", { class: "num" }, count(r.n)),
      el("td", { class: "num" }, percent(r.top1 / r.n), el("div", { class: "bar", title: `95 % interval ${percent(r.low)} to ${percent(r.high)}` }, el("i", { style: `width:${100 * r.top1 / r.n}%` }), el("b", { style: `left:${100 * r.low}%;width:${100 * (r.high - r.low)}%` }))),
      el("td", { class: "num wide" }, percent(r.top5 / r.n)), el("td", { class: "num wide" }, percent(r.confidence)),
      el("td", {}, r.as === null ? "" : `${names[r.as]} (${count(r.count)})`))));
    status.textContent = `${count(kept.length)} of ${count(rows.length)} classes`;
  }
  show(body, el("div", { class: "controls" }, el("label", {}, "filter", search), status), el("div", { class: "tall", tabindex: "0" }, el("table", {}, el("thead", {}, el("tr", {}, heads)), tableBody)));
  update();
}

// Calibration
function drawCalibration() {
  const { counts, accuracy, confidence } = DATA.calibration, bins = counts.length, most = Math.max(...counts), narrow = innerWidth < 560;
  const W = narrow ? 340 : 640, H = narrow ? 420 : 430, left = 66, top = 12, w = W - left - 26, h = narrow ? 240 : 262, top2 = top + h + 44, h2 = 62;
  const X = (v) => left + v * w, Y = (v) => top + (1 - v) * h, parts = [];
  for (const v of [0, .2, .4, .6, .8, 1]) parts.push(svg("line", { x1: left, x2: left + w, y1: Y(v), y2: Y(v), stroke: "var(--line)" }), svg("text", { x: left - 7, y: Y(v) + 4, "text-anchor": "end" }, `${Math.round(100 * v)} %`),
    svg("text", { x: X(v), y: top2 + h2 + 17, "text-anchor": "middle" }, `${Math.round(100 * v)} %`));
  const readout = el("p", { class: "note", role: "status" }, "Choose a bar for its numbers.");
  counts.forEach((n, i) => {
    const x = X(i / bins) + 1, bw = w / bins - 2, tall = most ? n / most * h2 : 0;
    if (n) parts.push(svg("rect", { x, y: Y(accuracy[i]), width: bw, height: h * accuracy[i], fill: "var(--correct)" }),
      svg("line", { x1: x - 1, x2: x + bw + 1, y1: Y(confidence[i]), y2: Y(confidence[i]), stroke: "var(--wrong)", "stroke-width": 4 }));
    parts.push(svg("rect", { x, y: top2 + h2 - tall, width: bw, height: tall, fill: "var(--muted)" }));
    if (n && !narrow) parts.push(svg("text", { x: x + bw / 2, y: top2 + h2 - tall - 4, "text-anchor": "middle", style: "font-size:10.5px" }, n > 9999 ? `${Math.round(n / 1000)}k` : count(n)));
    const tell = () => { readout.textContent = n ? `Confidence ${percent(i / bins, 0)} to ${percent((i + 1) / bins, 0)}: ${count(n)} images, accuracy ${percent(accuracy[i])}, mean confidence ${percent(confidence[i])}.` : `Confidence ${percent(i / bins, 0)} to ${percent((i + 1) / bins, 0)}: no images.`; };
    parts.push(svg("rect", { x: x - 1, y: top, width: bw + 2, height: top2 + h2 - top, fill: "transparent", class: "bin", onpointerenter: tell, onclick: tell }));
  });
  parts.push(svg("line", { x1: X(0), y1: Y(0), x2: X(1), y2: Y(1), stroke: "var(--muted)", "stroke-dasharray": "5 4", style: "pointer-events:none" }),
    svg("text", { x: left, y: top2 - 14 }, "images"), svg("text", { x: left + w / 2, y: top2 + h2 + 34, "text-anchor": "middle" }, "confidence"),
    svg("text", { transform: `translate(14 ${top + h / 2}) rotate(-90)`, "text-anchor": "middle" }, "accuracy"));
  const key = (fill, text) => el("span", {}, el("i", { style: `background:${fill}` }), text);
  show($("calibration-body"), el("div", { class: "legend", style: "margin-bottom:8px" }, key("var(--correct)", "accuracy of the bin"), key("var(--wrong)", "mean confidence of the bin"), el("span", {}, "dashed: perfect calibration")),
    svg("svg", { viewBox: `0 0 ${W} ${H}`, width: W, role: "img", "aria-label": "Accuracy against confidence" }, parts), readout);
}

drawPairs(); drawMatrix(); drawClasses(); drawCalibration();
if ($("mistakes-body")) show($("mistakes-body"), DATA.worst.map(shot));
if ($("filters-body")) filterViewer($("filters-body"), DATA.filters);
document.documentElement.dataset.ready = "true";
