// The log of llmd or of one engine, as it grows; a filter hides lines, a pause holds them back.
import { $, el, options, put } from "./dom.js";
import { state } from "./live.js";

const MOST = 2000;
let stream = null;
let held = [];
let paused = false;

export function render() {
  options($("log-of"), Object.keys(state.engines).sort());
}

export function openLog(name) {
  $("log-of").value = name;
  follow();
  $("logs").scrollIntoView();
  $("log").focus({ preventScroll: true });
}

export function rest() {
  stream?.close();
}

export function follow() {
  rest();
  held = [];
  $("log").replaceChildren();
  stream = new EventSource(`logs/${$("log-of").value}`);
  stream.onopen = () => $("log").replaceChildren(); // it begins with the log's end, also after a loss
  stream.onmessage = (event) => take(JSON.parse(event.data));
}

function take(lines) {
  held = [...held, ...lines].slice(-MOST);
  if (!paused) release();
  else put($("log-pause"), `Go on (${held.length} held)`);
}

function release() {
  const box = $("log");
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  box.append(...held.map(line));
  held = [];
  while (box.childElementCount > MOST) box.firstElementChild.remove();
  if (atEnd) box.scrollTop = box.scrollHeight;
}

function line(text) {
  const node = el("div", { textContent: readable(text) });
  node.hidden = !matches(node);
  if (/\bERROR\b/.test(text)) node.className = "bad";
  else if (/\bWARNING\b/.test(text)) node.className = "warning";
  return node;
}

/** llmd's own lines are JSON: time, level and event first, as a person reads them. */
function readable(text) {
  if (!text.startsWith('{"timestamp"')) return text;
  try {
    const { timestamp, level, event, message, ...rest } = JSON.parse(text);
    const more = Object.entries(rest).filter(([, value]) => value != null)
      .map(([key, value]) => `${key}=${typeof value === "object" ? JSON.stringify(value) : value}`);
    return [timestamp.slice(11, 19), level, event, message, ...more].filter(Boolean).join("  ");
  } catch {
    return text; // a line that was cut
  }
}

const matches = (node) => node.textContent.toLowerCase().includes($("log-filter").value.toLowerCase());

$("log-of").onchange = follow;
$("log-filter").oninput = () => {
  for (const node of $("log").children) node.hidden = !matches(node);
};
$("log-pause").onclick = () => {
  paused = !paused;
  $("log-pause").ariaPressed = String(paused);
  put($("log-pause"), paused ? "Go on" : "Pause");
  if (!paused) release();
};
