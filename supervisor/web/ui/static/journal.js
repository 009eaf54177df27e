// The journal of decisions, read anew when an engine changed its state or the mode changed.
import { $, el, options } from "./dom.js";
import { read, state } from "./live.js";

const PAUSE = 1000;
let seen = "";
let due = 0;

$("about").onchange = recall;

export function render() {
  const engines = Object.entries(state.engines);
  options($("about"), [...new Set(engines.flatMap(([name, engine]) => [engine.model, name]))].sort());
  const now = JSON.stringify([engines.map(([, engine]) => [engine.state, engine.starts]), state.daemon.daemon.mode,
    Object.keys(state.loans)]);
  if (now === seen || due) return;
  seen = now;
  due = setTimeout(() => { due = 0; recall(); }, PAUSE);
}

export async function recall() {
  try {
    const { decisions } = await read(`decisions?limit=100&about=${encodeURIComponent($("about").value)}`);
    $("decisions").replaceChildren(...decisions.reverse().map(line));
  } catch {
    seen = ""; // the stream tells when the daemon is lost; its next change asks again
  }
}

function line(entry) {
  const at = new Date(entry.at);
  const time = el("time", { dateTime: entry.at, textContent: at.toLocaleTimeString("en-GB"), title: at.toLocaleString() });
  const said = entry.message || entry.event;
  const about = entry.profile && !said.includes(entry.profile) ? `${entry.profile}: ` : "";
  return el("li", { className: entry.level === "INFO" ? "" : entry.level.toLowerCase() }, time, ` ${about}${said}`);
}
