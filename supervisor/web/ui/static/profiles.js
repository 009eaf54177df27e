// A row a profile, grouped by model: what it does, for how long, at what cost, and its buttons.
import { $, Keyed, coarse, el, gib, mark, number, put, show } from "./dom.js";
import { act, now, state } from "./live.js";
import { colour } from "./colours.js";
import { openLog } from "./logs.js";

const STARTABLE = new Set(["cold", "backoff", "impossible", "sleeping"]);
const COMING = new Set(["reserved", "starting", "waking", "adopting"]);
const KINDS = { ready: "good", sleeping: "rest", cold: "", backoff: "bad", impossible: "bad" };
const groups = new Keyed($("groups"), group);

export function render() {
  const models = new Map();
  for (const [name, engine] of Object.entries(state.engines).sort()) {
    if (!models.has(engine.model)) models.set(engine.model, []);
    models.get(engine.model).push([name, engine]);
  }
  groups.sync([...models].sort());
}

function group(model) {
  const rows = el("div", { className: "profiles" });
  const node = el("section", { className: "card model" }, el("h3", { textContent: model }), rows);
  const keyed = new Keyed(rows, row);
  return { node, update: (entries) => keyed.sync(entries) };
}

function row(name) {
  const kind = el("span", { className: "pill state" });
  const doing = el("span", { className: "doing" });
  const bar = el("progress", { max: 100, ariaLabel: `${name} is loading` });
  const figures = el("dl", { className: "numbers" });
  const error = el("button", { type: "button", className: "failure", title: "Show its log" });
  const title = el("h4", {}, el("i", { className: colour(name) }), name);
  const buttons = el("div", { className: "buttons" });
  const start = button("Start", name, () => act(`profiles/${name}/start`));
  const sleep = button("Sleep", name, () => act(`profiles/${name}/sleep`));
  const stop = button("Stop", name, () => askedTwice(stop, name));
  const pin = button("Pin", name, () => act(`profiles/${name}/${state.engines[name].pinned ? "unpin" : "pin"}`));
  const log = button("Log", name, () => openLog(name));
  buttons.append(start, pin, sleep, stop, log);
  error.onclick = () => openLog(name);
  const node = el("article", { className: "profile" }, title,
    el("div", { className: "now" }, kind, doing, bar), figures, error, buttons);
  node.dataset.profile = name;
  const numbers = new Keyed(figures, figure);
  function update(engine) {
    put(kind, engine.pinned ? `${engine.state}, pinned` : engine.state);
    kind.className = `pill state ${KINDS[engine.state] ?? "busy"}`;
    put(doing, activity(engine));
    show(bar, COMING.has(engine.state));
    bar.value = engine.percent ?? 0;
    numbers.sync(figuresOf(engine));
    put(error, engine.failure ? firstLine(engine.failure) : "");
    show(error, engine.failure);
    show(start, state.me.admin && STARTABLE.has(engine.state));
    show(stop, state.me.admin && engine.state !== "cold");
    put(pin, engine.pinned ? "Unpin" : "Pin");
    pin.ariaLabel = `${pin.textContent} ${name}`;
    show(pin, state.me.admin && engine.state === "ready" && !engine.keeps);
    show(sleep, state.me.admin && engine.sleeps && engine.state === "ready");
    mark(node, "off", !engine.available);
  }
  return { node, update };
}

function button(word, name, onclick) {
  return el("button", { type: "button", textContent: word, ariaLabel: `${word} ${name}`, onclick });
}

/** Requests in flight have the drain time and are then cut: that is said before it is done. */
function askedTwice(stop, name) {
  const busy = state.engines[name].in_flight;
  if (busy && stop.textContent === "Stop") {
    put(stop, `Stop, ${busy} in flight?`);
    setTimeout(() => put(stop, "Stop"), 4000);
    return;
  }
  put(stop, "Stop");
  act(`profiles/${name}/stop`);
}

function activity(engine) {
  const lasted = now() - engine.since;
  if (COMING.has(engine.state)) {
    const stage = engine.stage ? `${engine.stage}, ${Math.round(engine.percent)} %` : "waiting for its place";
    return `${stage}, ${coarse(lasted)} so far${toGo(engine, lasted)}`;
  }
  if (engine.ends != null) return `idle, stops in ${coarse(engine.ends - now())}`;
  if (!engine.available) return "not in this mode";
  if (engine.state === "cold") return engine.eta == null ? "" : `up in about ${coarse(engine.eta)}`;
  return engine.state === "ready" && engine.in_flight ? "busy" : `for ${coarse(lasted)}`;
}

/** Against what a cold start took before; waking takes its own time. */
function toGo(engine, lasted) {
  if (engine.state !== "starting" || engine.eta == null) return "";
  if (lasted < engine.eta) return `, about ${coarse(Math.ceil(engine.eta - lasted))} to go`;
  return engine.starts > 1 ? ", longer than usual" : ""; // the first time was only guessed
}

function figuresOf(engine) {
  const sum = (sizes) => Object.entries(sizes).filter(([device]) => onCards(engine, device)).reduce((all, [, size]) => all + size, 0);
  const planned = Object.keys(engine.reserved).length ? sum(engine.reserved) : engine.planned;
  const real = Object.keys(engine.measured).length ? gib(sum(engine.measured)) : "–";
  return [
    ["in flight", `${engine.in_flight} / ${engine.slots}`],
    ["queued", number(engine.queued)],
    ["tokens/s", engine.speed ? engine.speed.toFixed(1) : "0"],
    ["GiB real / planned", `${real} / ${planned == null ? "–" : gib(planned)}`],
  ];
}

/** An engine on cards also keeps some host memory, which is no part of what was planned for it. */
function onCards(engine, device) {
  return device !== "host" || Object.keys(engine.reserved).every((other) => other === "host");
}

function figure(name) {
  const value = el("dd");
  return { node: el("div", {}, el("dt", { textContent: name }), value), update: (text) => put(value, text) };
}

function firstLine(text) {
  return text.split("\n", 1)[0];
}
