// Requests under way, each with its cancel, and those that ended, with filters and percentiles.
import { $, Keyed, clock, coarse, el, mark, number, options, put, show, span } from "./dom.js";
import { act, now, state } from "./live.js";

const HEADS = ["Source", "Model", "Profile", "Prompt", "Output", "TTFT", "Age"];
const flying = new Keyed($("flights"), flight);
const ended = new Keyed($("recent"), past);
const shown = new Keyed($("percentiles"), figure);
for (const id of ["by-model", "by-source", "by-end"]) $(id).onchange = renderRecent;

export function renderFlights() {
  const flights = Object.entries(state.flights);
  put($("flying"), String(flights.length));
  some("flights", flights.length);
  flying.sync(flights);
}

export function renderRecent() {
  const all = Object.entries(state.recent).sort(([a], [b]) => Number(b) - Number(a));
  const unique = (key) => [...new Set(all.map(([, done]) => done[key]).filter(Boolean))].sort();
  options($("by-model"), unique("model"));
  options($("by-source"), unique("source"));
  const [model, source, end] = ["by-model", "by-source", "by-end"].map((id) => $(id).value);
  const found = all.filter(([, done]) => (!model || done.model === model) && (!source || done.source === source)
    && (!end || (done.status < 400) === (end === "good")));
  some("recent", found.length);
  ended.sync(found);
  shown.sync(summary(found.map(([, done]) => done)));
}

function some(id, any) {
  show($(`no-${id}`), !any);
  show($(id).parentElement, any);
}

function summary(done) {
  const bad = done.filter((one) => one.status >= 400).length;
  const rows = [["requests", String(done.length)], ["failed", String(bad)]];
  for (const [name, key] of [["TTFT", "ttft_s"], ["total", "latency_s"], ["queue", "queue_s"]]) {
    const known = done.map((one) => one[key]).filter((value) => value != null).sort((a, b) => a - b);
    rows.push([`${name} p50 / p95 / p99`, [0.5, 0.95, 0.99].map((share) => span(at(known, share))).join(" / ")]);
  }
  return rows;
}

/** The nearest rank. */
function at(sorted, share) {
  return sorted.length ? sorted[Math.ceil(share * sorted.length) - 1] : null;
}

function cells(count, numeric) {
  return Array.from({ length: count }, (_, index) => el("td", { className: numeric.includes(index) ? "n" : "" }));
}

function flight(key) {
  const tds = cells(7, [3, 4, 5, 6]);
  tds.forEach((td, index) => (td.dataset.head = HEADS[index])); // on a telephone each has its head beside it
  const cancel = el("button", { type: "button", textContent: "Cancel", onclick: () => act(`requests/${key}/cancel`) });
  const last = el("td", {}, cancel);
  function update(one) {
    const age = now() - one.started;
    [one.source, one.model, one.profile ?? "waits", `~${number(one.prompt)}`, number(one.output),
      one.ttft_s == null ? "–" : span(one.ttft_s), coarse(age)].forEach((text, index) => put(tds[index], text ?? "–"));
    cancel.ariaLabel = `Cancel the request of ${one.source} for ${one.model}`;
    show(cancel, state.me.admin);
  }
  return { node: el("tr", {}, ...tds, last), update };
}

function past() {
  const tds = cells(10, [4, 5, 6, 7, 8]);
  function update(one) {
    [clock(one.at), one.source, one.model, one.profile ?? "–", `${one.guessed ? "~" : ""}${number(one.prompt)}`, number(one.output), span(one.queue_s),
      span(one.ttft_s), span(one.latency_s), one.error ? `${one.status} ${one.error}` : String(one.status)]
      .forEach((text, index) => put(tds[index], text ?? "–"));
    mark(tds[9], "bad", one.status >= 400);
  }
  return { node: el("tr", {}, ...tds), update };
}

function figure(name) {
  const value = el("dd");
  return { node: el("div", {}, el("dt", { textContent: name }), value), update: (text) => put(value, text) };
}
