// The report of an evaluation with one label an image. Items are mistakes, and some correct images as examples; see page.py.
const items = { target: unpack(DATA.items.target), top: unpack(DATA.items.top), probability: unpack(DATA.items.probability), correct: unpack(DATA.items.correct) };
const width = DATA.items.top.shape[1];
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
const tell = (a, b) => a === b ? `${names[a]}, correct` : `${names[a]} predicted as ${names[b]}`;

function shot(i) {
  const target = items.target[i], top = items.top.subarray(i * width, (i + 1) * width), first = top[0], bars = [];
  top.forEach((label, rank) => {
    const p = items.probability[i * width + rank], kind = label === target ? "correct" : rank === 0 && !items.correct[i] ? "wrong" : "";
    bars.push(el("span", { class: kind, title: names[label] }, names[label]), bar(p, kind || "muted"), el("span", { class: "num" }, percent(p)));
  });
  return card(i, `An image of ${names[target]}`,
    el("div", {}, "true: ", el("b", { class: "correct" }, names[target])),
    el("div", { style: "margin-bottom:5px" }, items.correct[i] ? "correct" : ["predicted: ", el("b", { class: "wrong" }, names[first])]),
    el("div", { class: "top" }, bars));
}
function openCell(a, b) {
  const list = images.get(`${a},${b}`) || [], total = cellCount(a, b);
  const title = a === b ? `${names[a]}: ${count(total)} of ${count(sizes[a])} correct` : `${tell(a, b)}: ${count(total)} of ${count(sizes[a])}`;
  const back = a !== b && cellCount(b, a) ? el("button", { type: "button", onclick: () => openCell(b, a) }, `The other way round: ${count(cellCount(b, a))}`) : null;
  openDialog(title, el("div", { class: "controls" }, back), list.length ? gallery(list, total, shot) : el("p", { class: "empty" }, "No images of this cell are in the page."));
}
function openClass(a) {
  const list = [];
  for (const [key, some] of images) if (key.startsWith(`${a},`) && key !== `${a},${a}`) list.push(...some);
  const wrong = sizes[a] - hits[a];
  openDialog(`${names[a]}: ${count(wrong)} of ${count(sizes[a])} wrong`, list.length ? gallery(list, wrong, shot) : el("p", { class: "empty" }, "No mistakes."));
}

// The pairs that are confused most, both directions together
function drawPairs() {
  const both = DATA.both;
  if (!both.length) return;
  show($("top-shots"), DATA.shown.map(shot));
  const line = ([a, b, n, ab, ba]) => rowLink(() => openBoth(a, b), `${names[a]} · ${names[b]}`, el("td", { style: "width:26%" }, bar(n / both[0][2], "wrong")),
    el("td", { class: "num" }, count(n)), el("td", { class: "num wide", title: `${names[a]} as ${names[b]}, and the other way round` }, `${ab} + ${ba}`));
  show($("top-list"), el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "classes"), el("th", { colspan: 2 }, "images confused"), el("th", { class: "num wide" }, "each way"))),
    el("tbody", {}, both.slice(0, 10).map(line))));
}
function openBoth(a, b) {
  const list = [...(images.get(`${a},${b}`) || []), ...(images.get(`${b},${a}`) || [])];
  openDialog(`${names[a]} and ${names[b]}: ${count(cellCount(a, b))} one way, ${count(cellCount(b, a))} the other`, gallery(list, cellCount(a, b) + cellCount(b, a), shot));
}

drawPairs();
drawMatrix($("matrix-body"), { rows: names, columns: names, axes: ["true", "predicted"], word: "class", words: "classes", size: (a) => sizes[a], cells, near: pairs, tell, open: openCell, start: DATA.both.length ? DATA.both[0][0] : 0 });
drawTable($("classes-body"), {
  word: "class", words: "classes", rows, open: openClass, sorting: { column: 2, up: true },
  columns: [
    ["class", null, (r) => names[r.label]],
    ["n", "num", (r) => r.n, (r) => count(r.n)],
    ["top-1", "num", (r) => r.top1 / r.n, (r) => [percent(r.top1 / r.n), bar(r.top1 / r.n, "accent", [r.low, r.high])]],
    ["top-5", "num wide", (r) => r.top5 / r.n, (r) => percent(r.top5 / r.n)],
    ["confidence", "num wide", (r) => r.confidence, (r) => percent(r.confidence)],
    ["most often predicted as", null, (r) => r.count, (r) => r.as === null ? "" : `${names[r.as]} (${count(r.count)})`, true],
  ],
});
drawCalibration($("calibration-body"), { x: "confidence", y: "accuracy", things: "images" });
if ($("mistakes-body")) show($("mistakes-body"), el("div", { class: "shots" }, DATA.worst.map(shot)));
if ($("filters-body")) filterViewer($("filters-body"), DATA.filters);
document.documentElement.dataset.ready = "true";
