// A card a GPU: who holds its memory, how busy it is, how that was.
import { $, Keyed, coarse, el, gib, mark, percent, put, show } from "./dom.js";
import { act, now, read, state } from "./live.js";
import { colour } from "./colours.js";

const SVG = "http://www.w3.org/2000/svg";
/** What they have not given back is no memory of somebody else. */
const LEAVING = new Set(["stopping", "settling"]);
const POINTS = 360;
let span = "hour";
let history = { steps: {}, devices: {} };
const cards = new Keyed($("cards"), card);

export function render() {
  const devices = Object.entries(state.devices).filter(([, device]) => !device.host);
  const host = Object.entries(state.devices).filter(([, device]) => device.host);
  cards.sync([...devices, ...host]);
}

export async function recall() {
  history = await read("history");
  render();
}

for (const button of document.querySelectorAll("[data-span]")) {
  button.onclick = () => {
    span = button.dataset.span;
    for (const other of document.querySelectorAll("[data-span]")) other.ariaPressed = String(other === button);
    render();
  };
}

function card(key) {
  const title = el("h3"), kind = el("span", { className: "kind" });
  const total = el("p", { className: "big" });
  const note = el("p", { className: "note", hidden: true });
  const release = el("button", { type: "button", textContent: "Release", hidden: true, onclick: () => act(`gpus/${key}/release`),
    title: "Write off what did not come back: it counts as other people's" });
  const bar = el("div", { className: "bar", role: "img" });
  const reported = el("ul", { className: "reported", ariaLabel: "Errors that the driver reported" });
  const legend = el("ul", { className: "legend" });
  const gauges = el("dl", { className: "numbers" });
  const chart = lines();
  const node = el("article", { className: "card gpu" }, el("div", { className: "name" }, title, kind), total, note, release, reported, bar, legend, gauges, chart.node);
  const parts = new Keyed(bar, segment);
  const errors = new Keyed(reported, xid);
  const named = new Keyed(legend, entry);
  const shown = new Keyed(gauges, gauge);
  function update(device) {
    put(title, device.host ? "Host memory" : `GPU ${device.index ?? "?"}`);
    put(kind, device.host ? "" : device.name.replace(/^NVIDIA /, ""));
    put(total, device.total ? `${gib(device.used)} / ${gib(device.total)} GiB` : "no reading");
    tell(note, node, device);
    errors.sync(device.xids.map((found) => [found.xid, found]));
    release.ariaLabel = `Release ${title.textContent}`;
    show(release, device.quarantined && state.me.admin);
    const shares = device.total ? split(key, device) : [];
    parts.sync(shares.filter((share) => share.size > 0).map((share) => [share.key, { ...share, of: device.total }]));
    named.sync(shares.map((share) => [share.key, share]));
    bar.ariaLabel = shares.map((share) => `${share.name} ${gib(share.size)} GiB`).join(", ");
    shown.sync(device.host ? [] : sensors(device));
    chart.draw(history.devices[key]?.[span] ?? [], device);
  }
  return { node, update };
}

/** Quarantine, trouble and staleness, in words. */
function tell(note, node, device) {
  const age = now() - device.read;
  const stale = age > state.daemon.daemon.stale_after_s;
  const words = [
    device.quarantined && `Quarantined: ${device.quarantined}`,
    device.trouble && `Trouble: ${device.trouble}`,
    stale && `Stale: last read ${coarse(age)} ago; nothing is started on an old reading`,
  ].filter(Boolean);
  put(note, words.join(". "));
  show(note, words.length);
  mark(node, "ill", device.quarantined || device.trouble);
  mark(node, "stale", stale);
}

/** The memory of a device in the order of the bar: ours, promised, lent, foreign, unnamed, free. */
function split(key, device) {
  const shares = [], leaving = [];
  let named = 0, promised = 0;
  for (const [name, engine] of Object.entries(state.engines)) {
    const held = engine.measured[key] ?? 0, reserved = engine.reserved[key] ?? 0;
    if (!held && !reserved) continue;
    named += held;
    const left = Math.max(0, reserved - held);
    if (held) shares.push({ key: `of ${name}`, name, size: held, kind: colour(name) });
    if (LEAVING.has(engine.state)) {
      leaving.push([name, left]);
      continue;
    }
    promised += left;
    if (left > 2 ** 26) shares.push({ key: `for ${name}`, name: `${name}, reserved`, size: left, kind: `${colour(name)} hatched` });
  }
  for (const [name, loan] of Object.entries(state.loans)) {
    if (!loan.gpus.includes(device.index) || loan.ends === null) continue;
    const used = Math.min(loan.size, (loan.measured ?? 0) / loan.gpus.length);
    promised += loan.size - used;
    shares.push({ key: `loan ${name}`, name: `lent to ${loan.borrower}`, size: loan.size, kind: "loan" });
    if (loan.measured != null) named += used;
  }
  for (const holder of device.foreign) {
    const size = holder.used ?? 0;
    named += size;
    shares.push({ key: `pid ${holder.pid}`, name: `${holder.name} (PID ${holder.pid})`, size, kind: "foreign" });
  }
  let rest = device.used - named;
  for (const [name, left] of leaving) {
    const size = Math.max(0, Math.min(left, rest));
    rest -= size;
    promised += left - size;
    if (size) shares.push({ key: `back ${name}`, name: `${name}, not back yet`, size, kind: `${colour(name)} hatched` });
  }
  if (rest > 2 ** 28) shares.push({ key: "rest", name: device.host ? "in use by others" : "not attributed", size: rest, kind: "unnamed" });
  shares.push({ key: "free", name: "free", size: Math.max(0, device.free - promised), kind: "free" });
  return shares;
}

function segment() {
  const node = el("span");
  return { node, update(share) {
    node.className = share.kind;
    node.title = `${share.name}: ${gib(share.size)} GiB`;
    node.style.width = `${(100 * share.size) / share.of}%`;
  } };
}

function entry() {
  const swatch = el("i"), name = el("span", { className: "name" }), size = el("b");
  return { node: el("li", {}, swatch, name, size), update(share) {
    swatch.className = share.kind;
    put(name, share.name);
    put(size, `${gib(share.size)} GiB`);
  } };
}

function xid() {
  const node = el("li");
  return { node, update(found) {
    const times = found.count > 1 ? `${found.count} times, last ` : "";
    put(node, `XID ${found.xid}, ${times}${coarse(now() - found.at)} ago: ${found.meaning}`);
  } };
}

function sensors(device) {
  return [
    ["Busy", percent(device.utilization)],
    ["Heat", device.temperature == null ? "–" : `${device.temperature} °C`],
    ["Power", device.power == null ? "–" : `${Math.round(device.power)} W`],
  ];
}

export function gauge(name) {
  const value = el("dd");
  return { node: el("div", {}, el("dt", { textContent: name }), value), update: (text) => put(value, text) };
}

function lines() {
  const node = document.createElementNS(SVG, "svg");
  node.setAttribute("viewBox", "0 0 360 40");
  node.setAttribute("preserveAspectRatio", "none");
  node.setAttribute("role", "img");
  const drawn = ["used", "busy"].map((name) => {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", name);
    node.append(path);
    return path;
  });
  const busy = el("span", {}, el("i", { className: "busy" }), "busy");
  const words = el("p", { className: "quiet key" }, el("span", {}, el("i", { className: "used" }), "memory"), busy);
  const when = el("span", { className: "when" });
  words.append(when);
  function draw(points, device) {
    show(busy, !device.host);
    drawn.forEach((path, of) => path.setAttribute("d", trace(points, of)));
    put(when, reach(points.length));
    node.setAttribute("aria-label", `memory and utilisation, ${when.textContent}`);
  }
  return { node: el("div", { className: "chart" }, node, words), draw };
}

/** A young daemon has less to tell than its line has room for: then that little takes the whole width. */
function reach(points) {
  if (points >= POINTS) return span === "hour" ? "last hour" : "last 24 hours";
  return points < 2 ? "nothing yet" : `last ${coarse(points * history.steps[span])}`;
}

/** The newest at the right; a gap where nothing was read. */
function trace(points, of) {
  const step = POINTS / Math.max(1, points.length - 1);
  let path = "", pen = "M";
  points.forEach((point, index) => {
    if (point[of] == null) pen = "M";
    else {
      path += `${pen}${(index * step).toFixed(1)} ${(38.5 - 37 * point[of]).toFixed(1)}`;
      pen = "L";
    }
  });
  return path;
}
