"use strict";
// The page sends what is wished of the policy and shows what comes back. All that it computes is where lines are drawn.

const by = (id) => document.getElementById(id);
const WAIT = 60; // ms without a further turn before the views are asked for
let scene, wishes, asked = 0, timer;

function element(tag, attributes = {}, ...children) {
  const one = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) one.addEventListener(name.slice(2), value);
    else if (value === true) one.setAttribute(name, "");
    else if (value !== false && value !== null) one.setAttribute(name, value);
  }
  one.append(...children);
  return one;
}

function drawing(tag, attributes) {
  const one = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
  return one;
}

function start() {
  wishes = { strength: null, ops: {}, seed: scene.seed, epoch: scene.epoch, samples: scene.samples.slice(0, 4).map((s) => s.number) };
  by("what").textContent = `${scene.data} · ${scene.count.toLocaleString("en")} samples` + (scene.encoder ? ` · encoder ${scene.encoder}` : "");
  by("seed").value = wishes.seed;
  by("epoch").value = wishes.epoch;
  by("policy").replaceChildren(...(scene.strength === null || !scene.follows ? [] : [strength()]), ...scene.ops.map(operation));
  by("strip").replaceChildren(...scene.samples.map(thumbnail));
  ask();
}

function thumbnail(sample) {
  const button = element("button", {
    type: "button", title: sample.name, "aria-label": sample.name, "data-number": sample.number,
    "aria-pressed": String(wishes.samples.includes(sample.number)),
    onclick: () => {
      const at = wishes.samples.indexOf(sample.number);
      if (at < 0) wishes.samples.push(sample.number);
      else if (wishes.samples.length > 1) wishes.samples.splice(at, 1);
      button.setAttribute("aria-pressed", String(wishes.samples.includes(sample.number)));
      ask();
    },
  }, element("img", { src: sample.picture, alt: "" }));
  return button;
}

function strength() {
  const turn = (value) => { wishes.strength = value; later(); };
  return element("fieldset", {}, element("div", { class: "name" }, "strength", element("small", {}, "the paper's s")),
    element("div", { class: "keys" }, ...slider("strength", "strength", scene.strength, 0, 2, 0.05, turn)));
}

function operation(op) {
  const wish = () => (wishes.ops[op.name] ??= { on: true, values: {} });
  const box = element("fieldset", { "data-op": op.name });
  const on = element("input", {
    type: "checkbox", checked: true, id: `${op.name}-on`,
    onchange: () => { wish().on = on.checked; box.classList.toggle("off", !on.checked); later(); },
  });
  const keys = element("div", { class: "keys" });
  for (const key of op.keys) {
    keys.append(...control(`${op.name}-${key.key}`, key, (value) => { wish().values[key.key] = value; later(); }));
  }
  box.append(element("div", { class: "name", title: op.about }, on, element("label", { for: on.id }, op.name), element("small", {}, op.class)), keys);
  return box;
}

function control(id, key, turn) {
  if (key.follows) return []; // the strength turns it
  const name = key.key;
  if (key.kind === "flag") {
    const box = element("input", { type: "checkbox", id, checked: key.value, onchange: () => turn(box.checked) });
    return [row(name, id, box)];
  }
  if (key.kind === "choice") {
    const options = key.options.map((option) => element("option", { selected: option === key.value }, String(option)));
    const select = element("select", { id, onchange: () => turn(key.options[select.selectedIndex]) }, ...options);
    return [row(name, id, select)];
  }
  if (key.kind === "text") {
    const text = element("input", { type: "text", id, value: key.value, onchange: () => turn(text.value) });
    return [row(name, id, text)];
  }
  if (key.kind === "integer") {
    const field = element("input", { type: "number", step: 1, id, value: key.value, placeholder: "as it is", onchange: () => turn(field.value === "" ? null : Number(field.value)) });
    return [row(name, id, element("span"), field)];
  }
  const step = (end) => (key.whole ? 1 : end > 4 ? 0.1 : 0.01);
  if (key.kind === "range") {
    const now = [...key.value];
    return ["from", "to"].flatMap((word, at) =>
      slider(`${name} ${word}`, `${id}-${word}`, key.value[at], key.low, key.high, step(key.high), (value) => { now[at] = value; turn([...now]); }));
  }
  return slider(name, id, key.value, key.low, key.high, step(key.high), turn);
}

function row(name, id, ...fields) {
  return element("div", { class: "key" }, element("label", { for: id, title: name }, name), ...fields);
}

function slider(name, id, value, low, high, step, turn) {
  const bar = element("input", { type: "range", id, min: low, max: high, step, value });
  const field = element("input", { type: "number", step: "any", value: Number(value.toPrecision(4)), "aria-label": name });
  bar.addEventListener("input", () => { field.value = bar.value; turn(Number(bar.value)); });
  field.addEventListener("input", () => { if (field.value !== "") { bar.value = field.value; turn(Number(field.value)); } });
  return [row(name, id, bar, field)];
}

function later() {
  clearTimeout(timer);
  timer = setTimeout(ask, WAIT);
}

async function post(path, body) {
  const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const content = await answer.json().catch(() => ({ error: "the program has failed; its terminal says why" }));
  if (!answer.ok) throw new Error(content.error);
  return content;
}

async function ask() {
  clearTimeout(timer);
  const mine = ++asked;
  by("cards").classList.add("old");
  try {
    const found = await post("/views", wishes);
    if (mine !== asked) return; // something has been turned since
    show(found);
    if (scene.encoder) {
      say("the encoder looks at the pairs …");
      const pairs = await post("/pairs", wishes);
      if (mine !== asked) return;
      judge(pairs);
    }
    say("");
  } catch (error) {
    if (mine === asked) say(error instanceof TypeError ? "the program has ended: start it again" : error.message, true);
  }
  if (mine === asked) document.body.dataset.shown = mine;
}

function say(text, bad = false) {
  by("status").textContent = text;
  by("status").classList.toggle("bad", bad);
}

function show(found) {
  by("cards").classList.remove("old");
  by("cards").replaceChildren(...found.samples.map(card));
  by("yaml").textContent = found.yaml;
  by("words").textContent = ["twoview train", ...found.words.map(quoted)].join(" ");
}

const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

function card(sample) {
  const known = scene.samples.find((one) => one.number === sample.number);
  const shared = sample.overlap === null ? "" : `overlap ${Math.round(100 * sample.overlap)} %`;
  const boxes = drawing("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" });
  sample.views.forEach(({ box }, view) => {
    if (box) boxes.append(drawing("rect", { x: box.left, y: box.top, width: box.width, height: box.height, class: view ? "second" : "first" }));
  });
  return element("article", { class: "card", "data-number": sample.number },
    figure(sample.original, known ? known.name : `sample ${sample.number}`, "original", element("span", { class: "overlap" }, shared), boxes),
    ...sample.views.map((view, at) => figure(view.picture, at ? "second view" : "first view", `view${at}`, element("ul", {}, ...view.ops.map(drawn)))),
    element("div", { class: "cosines" }));
}

function figure(source, name, kind, about, over = "") {
  return element("figure", { class: kind }, element("div", { class: "picture" }, element("img", { src: source, alt: name }), over),
    element("figcaption", {}, element("b", {}, name), about));
}

function drawn(op) {
  return op.acts ? element("li", {}, `${op.name} `, element("span", {}, op.lines.join(", ").replace(/^applied$/, "")))
    : element("li", { class: "idle" }, `no ${op.name}`);
}

function judge(pairs) {
  [...document.querySelectorAll(".cosines")].forEach((place, at) => {
    place.replaceChildren(...Object.entries(pairs.spaces).map(([space, found]) => cosine(space, found, at, pairs.strangers)));
  });
}

function cosine(space, found, at, strangers) {
  const own = found.pairs[at], x = (value) => (value + 1) / 2;
  const lines = drawing("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", role: "img", "aria-label": `${space}: ${own.toFixed(3)}` });
  const mark = (value, kind, top) => lines.append(drawing("line", { x1: x(value), x2: x(value), y1: top, y2: 1 - top, class: kind }));
  lines.append(drawing("line", { x1: 0, x2: 1, y1: 0.5, y2: 0.5, class: "axis" }));
  found.random.forEach((value) => mark(value, "random", 0.25));
  mark(own, "own", 0);
  const number = (value) => (Math.round(100 * value) / 100 + 0).toFixed(2).replace("-", "−"); // + 0: no minus before 0
  return element("div", { class: "cosine", "data-space": space },
    element("div", {}, `cosine of ${space}  `, element("b", {}, number(own))), lines,
    element("div", { class: "ends" }, element("span", {}, "−1"), element("span", {}, "0"), element("span", {}, "1")),
    element("small", {}, `more alike than ${Math.floor(100 * found.above[at])} % of the pairs of different images (grey, ${strangers} images, mean ${number(found.mean)})`));
}

by("seed").addEventListener("input", () => { wishes.seed = Number(by("seed").value); later(); });
by("epoch").addEventListener("input", () => { wishes.epoch = Number(by("epoch").value); later(); });
by("next").addEventListener("click", () => { by("epoch").value = ++wishes.epoch; ask(); });
by("reset").addEventListener("click", start);
by("controls").addEventListener("submit", (event) => event.preventDefault());
for (const what of ["words", "yaml"]) {
  by(`copy-${what}`).addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(by(what).textContent);
      say("copied");
    } catch {
      getSelection().selectAllChildren(by(what)); // a browser that lets nobody write there
      say("marked: copy it by hand");
    }
  });
}
fetch("/scene").then((answer) => answer.json()).then((found) => { scene = found; start(); });
