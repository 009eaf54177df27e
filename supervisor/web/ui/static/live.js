// What the server shows: one stream, a snapshot first, then changes. And the way to ask it for something.
import { $, el, mark, put } from "./dom.js";

export const state = {
  daemon: {}, devices: {}, engines: {}, loans: {}, peers: {}, flights: {}, recent: {},
  /** Seconds that the server's clock is ahead of this one. */
  ahead: 0,
  me: { source: "", admin: false, token: "" },
};

export const now = () => Date.now() / 1000 + state.ahead;

const SILENT = 40000; // the server tells every 15 s that it is there
let watchdog = 0;
let stream = null;

export async function follow(render) {
  const answer = await fetch("me");
  if (answer.status === 401) return location.replace("signin");
  state.me = await answer.json();
  stream?.close();
  stream = new EventSource("events");
  const heard = () => {
    line("live", "good");
    clearTimeout(watchdog);
    watchdog = setTimeout(() => resume(render), SILENT);
  };
  stream.addEventListener("snapshot", (event) => {
    for (const section of Object.keys(JSON.parse(event.data).sections)) state[section] = {};
    merge(event, render);
    heard();
  });
  stream.addEventListener("change", (event) => {
    merge(event, render);
    heard();
  });
  stream.onopen = heard;
  stream.onerror = () => {
    line("lost, coming back", "bad");
    if (stream.readyState === EventSource.CLOSED) resume(render, 3000);
  };
  return undefined;
}

/** Closed for good, after a sign-out, by a daemon that restarts or by `rest`: ask again who we are. */
export function resume(render, after = 0) {
  rest("lost, coming back", "bad");
  watchdog = setTimeout(() => follow(render).catch(() => resume(render, 3000)), after);
}

/** A tab that nobody sees needs no stream, and a browser has only six for all tabs together. */
export function rest(text = "resting", kind = "") {
  stream?.close();
  clearTimeout(watchdog);
  line(text, kind);
}

function merge(event, render) {
  const told = JSON.parse(event.data);
  state.ahead = told.now - Date.now() / 1000;
  for (const [section, items] of Object.entries(told.sections)) {
    for (const [key, item] of Object.entries(items)) {
      if (item === null) delete state[section][key];
      else state[section][key] = item;
    }
  }
  render(new Set(Object.keys(told.sections)));
}

function line(text, kind) {
  put($("line"), text);
  for (const name of ["good", "bad"]) mark($("line"), name, name === kind);
}

export async function read(path) {
  const answer = await fetch(path);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error.message);
  return body;
}

/** Does something and says what came of it. */
export async function act(path) {
  try {
    const answer = await fetch(path, { method: "POST", headers: { "X-Llmd-Token": state.me.token } });
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.error.message);
    say(body.message);
  } catch (error) {
    say(error.message, "bad");
  }
}

export function say(text, kind = "") {
  const toast = el("p", { className: `toast ${kind}`, textContent: text });
  $("toasts").append(toast);
  setTimeout(() => toast.remove(), 8000);
}
