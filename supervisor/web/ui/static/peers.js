// A card a peer: whether it answers, how much of it we use, what it serves.
import { $, Keyed, el, mark, number, put, show } from "./dom.js";
import { state } from "./live.js";

const cards = new Keyed($("peer-cards"), card);

export function render() {
  const peers = Object.entries(state.peers).sort();
  show($("peers"), peers.length);
  show($("to-peers"), peers.length);
  cards.sync(peers);
}

function card(name) {
  const pill = el("span", { className: "pill" }), url = el("span", { className: "kind" });
  const load = el("p", { className: "big" });
  const meter = el("progress", { ariaLabel: `requests on ${name}` });
  const note = el("p", { className: "note" });
  const models = el("ul", { className: "legend" });
  const part = el("p", { className: "quiet" });
  const node = el("article", { className: "card gpu peer" },
    el("div", { className: "name" }, el("h3", { textContent: name }), pill, url), load, meter, note, models, part);
  node.dataset.peer = name;
  const listed = new Keyed(models, model);
  function update(peer) {
    put(pill, peer.up ? "up" : "down");
    for (const [kind, on] of [["good", peer.up], ["bad", !peer.up]]) mark(pill, kind, on);
    put(url, peer.url.replace(/^https?:\/\//, ""));
    put(load, `${peer.in_flight} / ${peer.max_concurrent} in flight`);
    meter.max = peer.max_concurrent;
    meter.value = peer.in_flight;
    put(note, peer.trouble ?? "");
    show(note, peer.trouble);
    mark(node, "ill", !peer.up);
    listed.sync(Object.entries(peer.models).sort());
    put(part, peer.spill ? "Also takes what is too much for this host." : "Takes only what this host does not serve.");
  }
  return { node, update };
}

function model(name) {
  const about = el("b");
  return { node: el("li", {}, el("span", { className: "name", textContent: name }), about), update(told) {
    const tokens = told.max_model_len == null ? "" : `${number(told.max_model_len)} tokens`;
    put(about, [tokens, told.warm ? "" : "not loaded"].filter(Boolean).join(", "));
  } };
}
