"use strict";
const element = id => document.getElementById(id);
const facts = JSON.parse(element("review").textContent), items = facts.items;
const decisions = new Map(), made = [];  // of a number of an item; and what stood there before each decision
const MARKS = { confirmed: "✓", relabelled: "→", rejected: "✗" };
const MOST_DAYS = 400, MOST_CHOICES = 24;
let shown = items.map((_, number) => number), current = 0, isSaved = true;

// what is kept in the browser, where it lets a page from disk keep anything

const keyOf = item => `nightscan review ${facts.store} ${JSON.stringify([item.file, item.start, item.end, item.name])}`;

function kept(action) {
  try {
    return action(window.localStorage);
  } catch {
    element("kept").textContent = "This browser keeps nothing for pages from disk: download your decisions before you"
      + " close the page.";
    return null;
  }
}

function keep(number) {
  const decision = decisions.get(number), key = keyOf(items[number]);
  kept(store => decision ? store.setItem(key, JSON.stringify(decision)) : store.removeItem(key));
}

function restore() {
  items.forEach((item, number) => {
    const text = kept(store => store.getItem(keyOf(item)));
    if (text) decisions.set(number, JSON.parse(text));
  });
  element("autoplay").checked = kept(store => store.getItem("nightscan review autoplay")) === "on";
}

// words

const labelOf = number => decisions.get(number)?.label || items[number].name;
const shortName = path => path.split(/[\\/]/).slice(-2).join("/");
const whenOf = item => item.time.slice(0, 19).replace("T", " ");
const clock = seconds => {
  const whole = Math.floor(seconds), two = value => String(value).padStart(2, "0");
  const minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60);
  return `${hours ? `${hours}:${two(minutes % 60)}` : minutes}:${two(whole % 60)}`;
};
const exactly = seconds => {
  const tenths = Math.round(10 * seconds);
  return clock(tenths / 10) + (tenths % 10 ? `.${tenths % 10}` : "");
};
const sentence = ({ decision, label }) => decision === "relabelled" ? `relabelled as ${label}` : decision;

// the detection in focus

function clipOf(number) {
  const block = element(`clip-${number}`);
  return block ? JSON.parse(block.textContent) : { problem: "there is no clip of it" };
}

function show(number, { scroll = true } = {}) {
  const rows = element("list").children, item = items[number], decision = decisions.get(number);
  const before = element("list").querySelector("[aria-current]");
  if (before) {
    before.removeAttribute("aria-current");
    before.tabIndex = -1;
  }
  current = number;
  const button = rowOf.get(number).firstChild;
  button.setAttribute("aria-current", "true");
  button.tabIndex = 0;
  if (scroll) uncover(button.parentElement);
  element("name").textContent = `${item.name}, ${item.confidence.toFixed(2)}`;
  const from = `${exactly(item.start)} to ${exactly(item.end)}`;
  element("place").title = item.file;
  element("place").textContent = [whenOf(item), shortName(item.file), from].filter(Boolean).join(" · ")
    + (decision ? ` · ${sentence(decision)}` : "");
  element("reason").textContent = item.reason;
  showClip(item, clipOf(number));
}

function uncover(row) {  // the list scrolls, not the page
  const list = element("list"), above = row.offsetTop - list.scrollTop;
  const below = above + row.offsetHeight - list.clientHeight;
  if (above < 0 || below > 0) list.scrollTop += above < 0 ? above : below;
}

function showClip(item, clip) {
  const sound = element("sound"), picture = element("spectrogram");
  element("problem").hidden = !clip.problem;
  element("problem").textContent = clip.problem ? `It cannot be shown: ${clip.problem}` : "";
  element("picture").hidden = Boolean(clip.problem);
  element("play").disabled = Boolean(clip.problem);
  sound.pause();
  moved();
  if (clip.problem) {
    sound.removeAttribute("src");
    picture.removeAttribute("src");
    return;
  }
  picture.src = clip.picture;
  picture.alt = `Spectrogram of ${item.name}`;
  sound.src = clip.sound;
  const share = seconds => 100 * Math.min(1, Math.max(0, (seconds - clip.start) / clip.seconds));
  const [left, right] = [share(item.start), share(item.end)];
  element("frame").hidden = left === 0 && right === 100;
  Object.assign(element("frame").style, { left: `${left}%`, width: `${right - left}%` });
  const step = [0.1, 0.2, 0.5, 1, 2].find(each => clip.seconds / each <= 8) ?? 5;
  const ticks = Array.from({ length: Math.floor(clip.seconds / step - 1e-6) }, (_, index) => (index + 1) * step);
  element("seconds").replaceChildren(...ticks.map(tick => place(`${+tick.toFixed(1)} s`, "left", tick / clip.seconds)));
  if (element("autoplay").checked) play();
}

function place(text, side, share) {
  const told = document.createElement("span");
  told.textContent = text;
  told.style[side] = `${100 * share}%`;
  return told;
}

function play() {
  const sound = element("sound");
  if (!sound.src) return;
  if (!sound.paused) return sound.pause();
  if (sound.ended) sound.currentTime = 0;
  sound.play().then(follow, () => {});  // a browser may not let a page play before it was touched
}

function follow() {
  moved();
  if (!element("sound").paused) requestAnimationFrame(follow);
}

function moved() {
  const sound = element("sound"), share = sound.currentTime / sound.duration;
  element("play").firstChild.textContent = sound.paused ? "Play" : "Stop";
  element("playhead").hidden = !(share > 0);
  if (share > 0) element("playhead").style.left = `${100 * share}%`;
}

// decisions

function decide(number, decision) {
  made.push([number, decisions.get(number)]);
  set(number, decision);
  const word = `${items[number].name} ${sentence(decision)}.`;
  const place = shown.indexOf(number);
  const later = [...shown.slice(place + 1), ...shown.slice(0, Math.max(place, 0))];
  const next = later.find(each => !decisions.has(each));
  refresh();
  go(next ?? current);
  tell(next === undefined ? `${word} All that are shown are decided.` : word);
}

function set(number, decision) {
  if (decision) decisions.set(number, decision);
  else decisions.delete(number);
  isSaved = false;
  keep(number);
  mark(number);
}

function undo() {
  const [number, before] = made.pop() ?? [current, undefined];
  const had = decisions.has(number);
  set(number, before);
  refresh(number);
  const stands = before ? sentence(before) : "not decided";
  tell(had ? `Taken back: ${items[number].name} is ${stands}.` : "Nothing to take back.");
}

const now = () => `${new Date().toISOString().slice(0, 19)}Z`;
const confirm = () => decide(current, { decision: "confirmed", label: items[current].name, at: now() });
const reject = () => decide(current, { decision: "rejected", label: "", at: now() });

function relabelAs(text) {
  const label = text.trim();
  if (!label) return element("label").focus();
  element("relabelling").close();
  if (label === items[current].name) confirm();
  else decide(current, { decision: "relabelled", label, at: now() });
}

function askLabel() {
  const names = [...new Set([...facts.classes, ...[...decisions.values()].map(each => each.label).filter(Boolean)])];
  const others = names.filter(name => name !== items[current].name);
  element("labels").replaceChildren(...others.map(name => new Option(name, name)));
  element("choices").replaceChildren(...others.slice(0, MOST_CHOICES).map((name, index) => {
    const button = document.createElement("button"), text = document.createElement("span");
    button.type = "button";
    text.textContent = name;
    button.append(text);
    if (index < 9) button.dataset.key = index + 1;
    button.addEventListener("click", () => relabelAs(name));
    return button;
  }));
  element("label").value = "";
  ask("relabelling");
  element("label").focus();
}

function ask(dialog) {
  // where nothing had the focus, a browser takes it from a closed dialog only in its next frame: keys would be lost
  if (document.activeElement === document.body) element("detection").focus({ preventScroll: true });
  element(dialog).showModal();
}

function tell(text) {
  element("told").textContent = text;
}

// the list and its filters

const rowOf = new Map(items.map((item, number) => {
  const row = document.createElement("li"), button = document.createElement("button");
  const [sign, name, confidence, small] = ["i", "b", "span", "small"].map(tag => document.createElement(tag));
  sign.ariaHidden = "true";
  confidence.textContent = item.confidence.toFixed(2);
  const when = whenOf(item) || `${item.file.split(/[\\/]/).pop()}, ${clock(item.start)}`;
  small.textContent = item.reason ? `suggested · ${when}` : when;
  button.type = "button";
  button.tabIndex = -1;
  button.append(sign, name, confidence, small);
  button.addEventListener("click", () => show(number, { scroll: false }));
  row.append(button);
  return [number, row];
}));

function mark(number) {
  const row = rowOf.get(number), decision = decisions.get(number);
  const [sign, name, confidence, small] = row.firstChild.children;
  row.className = decision?.decision ?? "";
  sign.textContent = MARKS[decision?.decision] ?? "";
  name.textContent = labelOf(number);
  row.firstChild.ariaLabel = [items[number].name, confidence.textContent, small.textContent,
                              decision ? sentence(decision) : "not decided"].join(", ");
}

function passing() {
  const [name, state, from, to, least] = ["class", "decided", "from", "to", "confidence"].map(id => element(id).value);
  return items.map((_, number) => number).filter(number => {
    const item = items[number], decision = decisions.get(number)?.decision, day = item.time.slice(0, 10);
    return (!name || name === item.name || name === labelOf(number)) && item.confidence >= Number(least)
      && (!state || state === (decision ?? "open")) && (!from || day >= from) && (!to || (day && day <= to));
  });
}

function sorted(numbers) {
  const keys = { time: number => items[number].time, unsure: number => items[number].confidence };
  const key = keys[element("order").value];
  return key ? numbers.sort((a, b) => key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : a - b) : numbers;
}

function order() {
  element("list").replaceChildren(...sorted(items.map((_, number) => number)).map(number => rowOf.get(number)));
  refresh(current);
}

function refresh(wanted = null) {
  shown = sorted(passing());
  const visible = new Set(shown);
  rowOf.forEach((row, number) => { if (row.hidden === visible.has(number)) row.hidden = !visible.has(number); });
  element("least").textContent = Number(element("confidence").value).toFixed(2);
  const n = shown.filter(number => decisions.has(number)).length, all = shown.length === items.length;
  element("count").textContent = `${n} of ${shown.length} ${all ? "" : "shown "}decided`
    + (all ? "" : `, ${decisions.size} of all ${items.length}`);
  Object.assign(element("progress"), { max: Math.max(1, shown.length), value: n });
  element("download").disabled = !decisions.size;
  for (const id of ["confirm", "reject", "relabel", "previous", "next"]) element(id).disabled = !shown.length;
  draw();
  if (wanted !== null && shown.length) show(visible.has(wanted) ? wanted : shown[0]);
  if (!shown.length) tell("No detection passes these filters.");
}

function go(number) {
  if (shown.length) show(shown.includes(number) ? number : shown[0]);
}

function step(by) {
  const place = shown.indexOf(current) + by;
  if (place < 0 || place >= shown.length) return tell(`This is the ${by > 0 ? "last" : "first"} one.`);
  tell("");
  show(shown[place]);
}

// activity: what is rejected does not count

function draw() {
  const counted = shown.filter(number => items[number].time && decisions.get(number)?.decision !== "rejected");
  const days = [...new Set(counted.map(number => items[number].time.slice(0, 10)))].sort();
  const sameYear = days.length && days[0].slice(0, 4) === days[days.length - 1].slice(0, 4);
  const count = (bars, of) => {
    const all = new Map(bars.map(bar => [bar, [0, 0]]));
    counted.forEach(number => { all.get(of(items[number].time))[decisions.has(number) ? 1 : 0] += 1; });
    return all;
  };
  const hours = Array.from({ length: 24 }, (_, hour) => String(hour).padStart(2, "0"));
  chart(element("hours"), count(hours, time => time.slice(11, 13)), hour => hour, 24);
  const [nameOf, room] = sameYear ? [day => day.slice(5), 44] : [day => day, 72];
  chart(element("days"), count(everyDay(days), time => time.slice(0, 10)), nameOf, room);
  const unknown = shown.filter(number => !items[number].time).length;
  element("activity-note").replaceChildren(swatch("swatch"), " confirmed or relabelled, ", swatch("swatch found"),
    " not decided, of the detections that the filters let pass; rejected ones do not count. Hours and days are those of"
    + ` the recorder's clock.${unknown ? ` Of ${unknown} nobody knows the time.` : ""}`);
}

function swatch(kind) {
  const box = document.createElement("span");
  box.className = kind;
  return box;
}

function everyDay(days) {
  if (!days.length) return [];
  const found = [], last = days[days.length - 1];
  for (let day = new Date(`${days[0]}T00:00Z`); found.length < MOST_DAYS; day.setUTCDate(day.getUTCDate() + 1)) {
    found.push(day.toISOString().slice(0, 10));
    if (found[found.length - 1] >= last) return found;
  }
  return days;  // years apart: only those with something
}

function chart(svg, counts, nameOf, room) {
  const width = svg.clientWidth || 600, height = svg.clientHeight || 144, [left, bottom, top] = [34, 20, 14];
  const bars = [...counts], most = Math.max(1, ...bars.map(([, [open, sure]]) => open + sure));
  const wide = (width - left) / Math.max(1, bars.length), high = count => (height - bottom - top) * count / most;
  const parts = [draws("line", { x1: left, x2: width, y1: height - bottom, y2: height - bottom }),
    draws("line", { x1: left, x2: width, y1: top, y2: top }),
    draws("text", { x: left - 6, y: top + 4, "text-anchor": "end" }, most),
    draws("text", { x: left - 6, y: height - bottom + 4, "text-anchor": "end" }, 0)];
  const every = Math.ceil(room / wide);
  const base = height - bottom;
  const thick = Math.max(0.5, Math.min(60, wide - Math.min(2, wide / 4)));
  bars.forEach(([bar, [open, sure]], index) => {
    const x = left + index * wide + Math.min(1, wide / 8), middle = x + thick / 2;
    const block = (kind, below, count) => draws("rect", { class: kind, x, width: thick, y: base - high(below + count),
                                                          height: high(count) });
    if (sure) parts.push(block("sure", 0, sure));
    if (open) parts.push(block("found", sure, open));
    if (index % every === 0 && middle + room / 2 <= width + 6)
      parts.push(draws("text", { x: middle, y: height - 5, "text-anchor": "middle" }, nameOf(bar)));
  });
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(...parts);
  const [peak, [open, sure]] = bars.reduce((best, bar) => bar[1][0] + bar[1][1] > best[1][0] + best[1][1] ? bar : best,
    ["", [0, 0]]);
  svg.ariaLabel = peak ? `Most detections: ${open + sure}, ${nameOf(peak)}` : "No detections";
}

function draws(tag, attributes, text) {
  const part = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([name, value]) => part.setAttribute(name, value));
  if (text !== undefined) part.textContent = text;
  return part;
}

// the table that is handed back

function table() {
  const field = value => /[",\r\n]|^[\s=+\-@]|\s$/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  const rows = items.map((item, number) => [item, decisions.get(number)]).filter(([, decision]) => decision);
  const lines = rows.map(([item, { decision, label, at }]) =>
    [item.file, item.start, item.end, item.name, item.confidence, decision, label, at]);
  return [facts.columns, ...lines].map(line => `${line.map(value => field(String(value))).join(",")}\n`).join("");
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
  link.download = facts.saved_as;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  isSaved = true;
  tell(`${decisions.size} decisions downloaded as ${facts.saved_as}.`);
}

// keys and clicks

const toggle = () => element("autoplay").click();
const help = () => ask("keys");
const ACTIONS = { y: confirm, n: reject, r: askLabel, u: undo, a: toggle, "?": help, Enter: confirm, " ": play,
                  j: () => step(1), k: () => step(-1), ArrowRight: () => step(1), ArrowLeft: () => step(-1),
                  ArrowDown: () => step(1), ArrowUp: () => step(-1) };
const NEEDS_ONE = new Set([confirm, reject, askLabel]);

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const target = event.target, isButton = target.closest("button, a, summary, input[type=checkbox]");
  if (target.closest("select, input:not([type=checkbox])") || isButton && ["Enter", " "].includes(event.key)) return;
  const action = ACTIONS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || event.repeat && !event.key.startsWith("Arrow") || NEEDS_ONE.has(action) && !shown.length) return;
  event.preventDefault();
  action();
});
// after a click of the mouse the keys mean what they mean on the page, not that button again
document.addEventListener("click", event => {
  if (event.detail && event.target.closest("button") && !document.querySelector("dialog[open]"))
    element("detection").focus({ preventScroll: true });
});
element("label").addEventListener("keydown", event => {
  if (element("label").value) return;
  const choice = element("choices").querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (!choice) return;
  event.preventDefault();
  choice.click();
});
element("relabelling").addEventListener("submit", event => {
  event.preventDefault();
  relabelAs(element("label").value);
});
const clicks = { play, confirm, reject, relabel: askLabel, undo, previous: () => step(-1), next: () => step(1), help,
                 download, cancel: () => element("relabelling").close(),
                 close: () => element("keys").close() };
Object.entries(clicks).forEach(([id, action]) => element(id).addEventListener("click", action));
element("plot").addEventListener("click", event => {
  const box = element("plot").getBoundingClientRect(), sound = element("sound");
  if (sound.duration) sound.currentTime = sound.duration * (event.clientX - box.left) / box.width;
  if (sound.paused) play();
});
element("autoplay").addEventListener("change", event => {
  kept(store => store.setItem("nightscan review autoplay", event.target.checked ? "on" : "off"));
  if (event.target.checked) play();
});
for (const id of ["class", "decided", "from", "to", "confidence"]) element(id).addEventListener("input", () => {
  tell("");
  refresh(current);
});
element("order").addEventListener("input", order);
for (const type of ["play", "pause", "ended", "seeked"]) element("sound").addEventListener(type, moved);
window.addEventListener("resize", draw);
window.addEventListener("beforeunload", event => {
  if (!isSaved) event.preventDefault();
});

const classes = [...facts.classes, ...items.map(item => item.name)];
element("class").append(...[...new Set(classes)].filter(name => items.some(item => item.name === name))
  .map(name => new Option(name, name)));
const days = items.map(item => item.time.slice(0, 10)).filter(Boolean).sort();
for (const id of ["from", "to"]) Object.assign(element(id), { min: days[0] ?? "", max: days[days.length - 1] ?? "" });
if (items.some(item => item.reason)) element("order").options[0].text = "suggested, then class and time";
element("kilohertz").replaceChildren(...facts.ticks.map(([share, text]) => place(text, "bottom", share)));
restore();
items.forEach((_, number) => mark(number));
element("review-page").hidden = false;
order();
const first = shown.find(number => !decisions.has(number)) ?? shown[0];
show(first);
tell(decisions.size ? `${decisions.size} decisions of an earlier visit are kept.` : "");
