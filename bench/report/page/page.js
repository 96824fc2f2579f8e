"use strict";
// Texts from outside reach the page by textContent only, never as HTML.
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const root = document.documentElement;
root.classList.add("js");

function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
function choices(select, pairs, kept) {
  select.replaceChildren(...pairs.map(([value, text]) => make("option", text, { value })));
  if (kept !== undefined && pairs.some(([value]) => String(value) === String(kept))) select.value = kept;
}
async function unpacked(name) {
  const bytes = Uint8Array.from(atob($("packed-" + name).textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}
async function loadScript(name) {
  const element = make("script", `(() => {"use strict";${await unpacked(name)}\n})();`);
  document.head.append(element);
}
const saved = (name, value) => {
  try {
    if (value === undefined) return sessionStorage.getItem(name);
    sessionStorage.setItem(name, value);
  } catch { /* Some browsers keep nothing for files. */ }
  return null;
};

// Theme ------------------------------------------------------------------------------------------------------------
const THEMES = ["as the system", "light", "dark"];
let theme = Number(saved("theme") ?? 0) % 3;
const darkSystem = matchMedia("(prefers-color-scheme: dark)");
function applyTheme() {
  root.dataset.theme = theme === 2 || (theme === 0 && darkSystem.matches) ? "dark" : "light";
  $("theme").textContent = "Theme: " + THEMES[theme];
  if (window.vegaEmbed) drawCharts();
}
$("theme").addEventListener("click", () => { theme = (theme + 1) % 3; saved("theme", theme); applyTheme(); });
darkSystem.addEventListener("change", applyTheme);

// Differences of two rows ----------------------------------------------------------------------------------------------
const pairs = data.parts.map((part) => {
  const of = new Map();
  for (const [a, b, value, low, high, p] of part.pairs) {
    of.set(a + "/" + b, { value, low, high, p });
    of.set(b + "/" + a, { value: -value, low: high === null ? null : -high, high: low === null ? null : -low, p });
  }
  return of;
});
const signed = (value, rates) => (value < 0 ? "-" : "+") + Math.abs(value).toFixed(rates ? 1 : 2);
const pWords = (p) => (p === null ? "-" : p < 1e-4 ? "<0.0001" : p.toFixed(4));
function pairWords({ value, low, high, p }, rates) {
  const ends = low === null ? "" : ` [${signed(low, rates)}, ${signed(high, rates)}]`;
  return signed(value, rates) + ends + (p !== null && p < 0.05 ? "" : " ≈");
}

// Table --------------------------------------------------------------------------------------------------------------
let table = null;
async function startTable() {
  await loadScript("datatables");
  const heads = [...document.querySelectorAll("#results thead th")];
  const names = heads.map((head) => head.textContent.trim());
  const hidden = heads.flatMap((head, k) => (head.classList.contains("hide") ? [k] : []));
  const reference = heads.map((head) => (head.classList.contains("ref") ? Number(head.dataset.part) : null));
  table = new window.DataTable("#results", {
    paging: false, info: false, order: [], autoWidth: false,
    layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
    columnDefs: [{ targets: hidden, visible: false }],
  });
  const count = () => { $("count").textContent = `${table.rows({ search: "applied" }).count()} of ${data.rows.length} rows`; };
  table.on("draw", count);
  count();
  $("search").addEventListener("input", (event) => table.search(event.target.value).draw());
  names.forEach((name, k) => {
    if (k < 2 || reference[k] !== null) return;
    const label = make("label", undefined), box = make("input", undefined, { type: "checkbox" });
    box.checked = !hidden.includes(k);
    box.addEventListener("change", () => table.column(k).visible(box.checked));
    label.append(box, " " + name);
    $("columns").append(label);
  });
  choices($("reference"), [["", "start model of each row"], ...data.rows.map((row) => [row.number, `${row.number} ${row.name}`])]);
  $("reference").addEventListener("change", () => {
    const chosen = Number($("reference").value);
    table.rows().every(function () {
      const number = Number(this.node().dataset.row);
      this.node().classList.toggle("reference", number === chosen);
      reference.forEach((part, k) => {
        if (part === null) return;
        const cell = table.cell(this.index(), k), pair = pairs[part].get(number + "/" + chosen), p = names[k].includes("p (all");
        const text = number === chosen ? "reference" : !pair ? "-" : p ? pWords(pair.p) : pairWords(pair, data.parts[part].rates);
        cell.node().textContent = text;
        cell.node().setAttribute("data-order", !pair ? (number === chosen ? 0 : -1e9) : p ? (pair.p ?? 2) : pair.value);
      });
      this.invalidate("dom");
    });
    reference.forEach((part, k) => part !== null && table.column(k).visible(chosen > 0));
    table.draw();
  });
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("button.read");
  if (!button) return;
  const cell = data.cells.findIndex((one) => one.row === Number(button.dataset.row));
  $("s-a").value = cell;
  showSamples();
  $("samples").scrollIntoView();
  $("s-shown").focus({ preventScroll: true });
});
function openTarget() {
  const target = location.hash.length > 1 ? $(location.hash.slice(1)) : null;
  if (target instanceof HTMLDetailsElement) { target.open = true; target.scrollIntoView(); }
}
addEventListener("hashchange", openTarget);
addEventListener("beforeprint", () => document.querySelectorAll("details:not(.menu)").forEach((one) => { one.open = true; }));

// Matrix of pairs -----------------------------------------------------------------------------------------------------
data.parts.forEach((part, k) => {
  const rows = data.rows.filter((row) => data.rows.some((other) => pairs[k].has(row.number + "/" + other.number)));
  if (!rows.length) return;
  const grid = make("table", undefined, { class: "matrix" }), head = make("tr"), body = make("tbody");
  head.append(make("th", part.label || "row", { scope: "col" }), ...rows.map((row) => make("th", row.number, { scope: "col", title: row.name })));
  for (const row of rows) {
    const line = make("tr");
    line.append(make("th", `${row.number} ${row.name}`, { scope: "row" }));
    for (const other of rows) {
      const pair = pairs[k].get(row.number + "/" + other.number);
      if (!pair) { line.append(make("td", row === other ? "" : "-")); continue; }
      const sure = pair.p !== null && pair.p < 0.05;
      line.append(make("td", signed(pair.value, part.rates), {
        class: !sure ? "" : pair.value > 0 ? "more" : "less",
        title: `${row.name} minus ${other.name}: ${pairWords(pair, part.rates)}, p ${pWords(pair.p)}`,
      }));
    }
    body.append(line);
  }
  const top = make("thead"), wide = make("div", undefined, { class: "wide", tabindex: "0", role: "region", "aria-label": "Differences of all pairs of rows" });
  top.append(head);
  grid.append(top, body);
  wide.append(grid);
  $("matrix").append(wide);
});

// Charts -------------------------------------------------------------------------------------------------------------
let charts = null;
async function startCharts() {
  charts = JSON.parse(await unpacked("charts"));
  if (!charts.length) { $("drawn").append(make("p", "Nothing to draw yet.")); return; }
  for (const chart of charts) {
    const figure = make("figure"), caption = make("figcaption", chart.title);
    caption.append(make("small", chart.about));
    chart.place = make("div", undefined, { class: "chart", role: "group", "aria-label": chart.title });
    figure.append(caption, chart.place);
    $("drawn").append(figure);
  }
  await loadScript("vega");
  await drawCharts();
}
async function drawCharts() {
  const style = getComputedStyle(root), colour = (name) => style.getPropertyValue(name).trim();
  const axis = { labelColor: colour("--soft"), titleColor: colour("--ink"), domainColor: colour("--soft"), tickColor: colour("--soft"), gridColor: colour("--line"), titleFontWeight: 500 };
  const config = { background: null, view: { stroke: null }, axis, legend: { labelColor: colour("--ink"), titleColor: colour("--ink") }, text: { color: colour("--ink") }, font: "system-ui, sans-serif" };
  for (const chart of charts ?? []) {
    chart.drawn?.finalize();
    chart.drawn = await window.vegaEmbed(chart.place, chart.spec, {
      renderer: "svg", ast: true, config, tooltip: { disableDefaultStyle: true }, defaultStyle: false,
      actions: { export: true, source: false, compiled: false, editor: false },
    });
  }
}

// Completions ---------------------------------------------------------------------------------------------------------
let sets = [], shownItems = [];
const FIELDS = ["s-set", "s-a", "s-b", "s-show", "s-category", "s-turn", "s-length"];
async function startSamples() {
  sets = JSON.parse(await unpacked("samples"));
  if (!sets.length) return;
  $("browser").hidden = false;
  choices($("s-set"), sets.map((set, k) => [k, set.name]));
  const seeds = new Set(data.cells.map((cell) => cell.seed)).size > 1;
  const names = new Map(data.rows.map((row) => [row.number, row.name]));
  const cells = data.cells.map((cell, k) => [k, `${cell.row} ${names.get(cell.row)}${seeds ? `, seed ${cell.seed}` : ""}`]);
  const first = Math.min(1, cells.length - 1);
  choices($("s-a"), cells, first);
  choices($("s-b"), cells, data.cells.findLastIndex((cell) => cell.seed === data.cells[first].seed));
  for (const id of FIELDS) $(id).addEventListener("change", () => showSamples());
  $("s-item").addEventListener("change", showItem);
  $("s-previous").addEventListener("click", () => move(-1));
  $("s-next").addEventListener("click", () => move(1));
  $("browser").addEventListener("keydown", (event) => {
    if (event.target.closest("select, input, summary") || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key];
    if (step) { move(step); event.preventDefault(); }
  });
  showSamples();
}
function move(step) {
  const place = $("s-item").selectedIndex + step;
  if (place < 0 || place >= shownItems.length) return;
  $("s-item").selectedIndex = place;
  showItem();
}
const scored = (entry) => entry?.[2]?.find((verdict) => !verdict.judge && verdict.value !== undefined)?.value;
function showSamples() {
  const set = sets[$("s-set").value];
  const categories = [...new Set(set.items.map((item) => item.category).filter(Boolean))].sort();
  choices($("s-category"), [["", "all"], ...categories.map((name) => [name, name])], $("s-category").value);
  const turns = Math.max(...set.items.map((item) => item.turns.length));
  choices($("s-turn"), [["", "all"], ...Array.from({ length: turns }, (_, k) => [k, String(k + 1)])], $("s-turn").value);
  const a = set.texts[$("s-a").value] ?? [], b = set.texts[$("s-b").value] ?? [];
  const rates = set.name.endsWith("preference");
  const tests = {
    all: () => true,
    differ: (one, other) => one?.[0] !== other?.[0],
    worse: (one, other) => scored(one) < scored(other),
    better: (one, other) => scored(one) > scored(other),
    loses: (one) => rates && scored(one) < 0.5,
    unscored: (one, other) => [one, other].some((entry) => entry?.[2]?.some((verdict) => verdict.value === undefined)),
  };
  const lengths = { "": () => true, longer: (x, y) => x > y, shorter: (x, y) => x < y };
  const fits = (k) => set.items[k].turns.some((_, t) => {
    if ($("s-turn").value !== "" && t !== Number($("s-turn").value)) return false;
    const one = a[k]?.[t], other = b[k]?.[t];
    return tests[$("s-show").value](one, other) && lengths[$("s-length").value](one?.[0].length ?? 0, other?.[0].length ?? 0);
  });
  shownItems = set.items.flatMap((item, k) => (!$("s-category").value || item.category === $("s-category").value) && fits(k) ? [k] : []);
  const title = (k) => `${k + 1}. ${set.items[k].category ? set.items[k].category + ": " : ""}${set.items[k].turns[0].slice(0, 70)}`;
  choices($("s-item"), shownItems.map((k) => [k, title(k)]), $("s-item").value);
  showItem();
}
function showItem() {
  const set = sets[$("s-set").value], place = $("s-item").selectedIndex, box = $("s-shown");
  $("s-count").textContent = shownItems.length ? `${place + 1} of ${shownItems.length}` : "no prompt has this";
  $("s-previous").disabled = place <= 0;
  $("s-next").disabled = place >= shownItems.length - 1;
  box.replaceChildren();
  if (place < 0) return;
  const k = shownItems[place], item = set.items[k], turn = $("s-turn").value;
  const a = set.texts[$("s-a").value]?.[k], b = set.texts[$("s-b").value]?.[k];
  if (item.context) box.append(make("p", item.context, { class: "text soft" }));
  item.turns.forEach((prompt, t) => {
    if (turn !== "" && t !== Number(turn)) return;
    const part = make("div", undefined, { class: "turn" }), sides = make("div", undefined, { class: "sides" });
    part.append(make("h4", item.turns.length > 1 ? `Prompt, turn ${t + 1}` : "Prompt"), make("div", prompt, { class: "text" }));
    const [partsA, partsB] = differing(a?.[t]?.[0], b?.[t]?.[0]);
    sides.append(side("a", "A: " + $("s-a").selectedOptions[0].text, a?.[t], partsA), side("b", "B: " + $("s-b").selectedOptions[0].text, b?.[t], partsB));
    const opponents = [...new Set([a?.[t]?.[3] ?? item.baseline?.[t], b?.[t]?.[3] ?? item.baseline?.[t]].filter((text) => text !== undefined && text !== null))];
    for (const [n, text] of opponents.entries()) {
      const one = make("div", undefined, { class: "side" });
      one.append(make("h4", opponents.length > 1 ? `Opponent of ${"AB"[n]}` : "Opponent"), make("div", text || "(empty)", { class: "text" }));
      sides.append(one);
    }
    part.append(sides);
    box.append(part);
  });
}
function side(letter, name, entry, parts) {
  const box = make("div", undefined, { class: "side " + letter });
  box.append(make("h4", name));
  if (!entry) { box.append(make("p", "no completion", { class: "soft" })); return box; }
  const text = make("div", undefined, { class: "text" });
  for (const [word, other] of parts) text.append(other ? make("mark", word) : word);
  if (!entry[0]) text.textContent = "(empty)";
  box.append(text);
  if (entry[1]) box.append(make("p", "cut at its longest length", { class: "soft" }));
  for (const verdict of entry[2]) {
    const won = !verdict.says.startsWith("preference") ? "" : verdict.value > 0.5 ? " won" : verdict.value < 0.5 ? " lost" : "";
    box.append(make("p", `${verdict.judge ? verdict.judge + ": " : ""}${verdict.says}`, { class: "verdict" + won }));
    for (const reply of verdict.replies ?? []) {
      const details = make("details");
      details.append(make("summary", "the judge's words"), make("div", reply, { class: "text soft" }));
      box.append(details);
    }
  }
  return box;
}
// Words of two texts, each with whether the other text lacks it (longest common subsequence).
function differing(first, second) {
  const a = (first ?? "").match(/\s*\S+|\s+$/g) ?? [], b = (second ?? "").match(/\s*\S+|\s+$/g) ?? [];
  if (first === undefined || second === undefined || a.length * b.length > 4e6) return [a.map((word) => [word, false]), b.map((word) => [word, false])];
  const width = b.length + 1, longest = new Uint16Array((a.length + 1) * width), same = (i, j) => a[i].trim() === b[j].trim();
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      longest[i * width + j] = same(i, j) ? longest[(i + 1) * width + j + 1] + 1 : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
  const left = [], right = [];
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && same(i, j)) { left.push([a[i++], false]); right.push([b[j++], false]); }
    else if (j >= b.length || (i < a.length && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) left.push([a[i++], true]);
    else right.push([b[j++], true]);
  }
  return [left, right];
}

// Live ---------------------------------------------------------------------------------------------------------------
// What the reader has chosen is kept over a reload of the page.
const KEPT = ["search", "reference", ...FIELDS, "s-item"];
function keep() {
  saved("kept", JSON.stringify({ fields: Object.fromEntries(KEPT.map((id) => [id, $(id).value])), y: scrollY }));
}
function restore() {
  const kept = JSON.parse(saved("kept") ?? "null");
  sessionStorage.removeItem("kept");
  for (const [id, value] of Object.entries(kept?.fields ?? {})) {
    if (!value || ($(id).options && ![...$(id).options].some((option) => option.value === value))) continue;
    $(id).value = value;
    $(id).dispatchEvent(new Event(id === "search" ? "input" : "change"));
  }
  if (kept) scrollTo(0, kept.y);
}
async function follow() {
  try {
    const now = await (await fetch("state", { cache: "no-store" })).json();
    $("state").textContent = now.state;
    if (now.version !== data.live) { keep(); location.reload(); return; }
  } catch { $("state").textContent = "the command do=view has ended; this page is as it was then"; }
  setTimeout(follow, 3000);
}

applyTheme();
Promise.all([startTable(), startSamples(), startCharts()]).then(() => {
  openTarget();
  if (data.live) { restore(); follow(); }
  root.dataset.ready = "yes";
});
