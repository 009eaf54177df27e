// The dashboard: what came by the stream goes to the parts of the page that show it.
import { $, Keyed, el, put } from "./dom.js";
import { follow, rest, resume, say, state } from "./live.js";
import * as configuration from "./configuration.js";
import * as gpus from "./gpus.js";
import * as journal from "./journal.js";
import * as logs from "./logs.js";
import * as modes from "./modes.js";
import * as peers from "./peers.js";
import * as profiles from "./profiles.js";
import * as requests from "./requests.js";

const HISTORY = 30000;
const troubles = new Keyed($("troubles"), () => {
  const node = el("li");
  return { node, update: (text) => put(node, text) };
});

function render(changed) {
  if (!state.daemon.daemon) return;
  gpus.render();
  profiles.render();
  peers.render();
  requests.renderFlights();
  modes.render();
  configuration.render();
  if (changed.has("recent")) requests.renderRecent();
  if (changed.has("engines") || changed.has("daemon") || changed.has("loans")) journal.render();
  if (changed.has("engines")) logs.render();
  const { daemon } = state.daemon;
  const said = [...(daemon.closing ? ["llmd is stopping"] : []), ...daemon.troubles];
  troubles.sync(said.map((text, index) => [String(index), text]));
  put($("who"), state.me.admin ? state.me.source : `${state.me.source}, may only look`);
}

function turn() {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", document.documentElement.dataset.theme);
}

$("theme").onclick = turn;
$("signout").onclick = async () => {
  await fetch("signout", { method: "POST" });
  location.replace("signin");
};
const quietly = (work) => work().catch((error) => say(error.message, "bad"));

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    rest();
    logs.rest();
  } else {
    resume(render);
    logs.follow();
  }
});

follow(render).catch(() => resume(render, 3000));
logs.follow();
quietly(gpus.recall);
setInterval(() => render(new Set()), 1000);
setInterval(() => gpus.recall().catch(() => undefined), HISTORY); // the stream tells when it is lost
