// The configuration: since when it holds, whether the files differ, and the change, shown before it is made.
import { $, el, put, show } from "./dom.js";
import { act, read, say, state } from "./live.js";

let loaded = "";

export function render() {
  const { config } = state.daemon.daemon;
  const newer = config.newer ? " The files have changed since." : "";
  put($("loaded"), `Holds since ${new Date(config.loaded).toLocaleString("en-GB")}.${newer}`);
  put($("config-error"), config.error ? `Not taken: ${config.error}` : "");
  show($("config-error"), config.error);
  show($("reload-buttons"), state.me.admin);
  if (config.loaded !== loaded) forget(); // what was shown is done, here or elsewhere
  loaded = config.loaded;
}

function forget() {
  show($("differences"), false);
  show($("reload"), false);
}

async function plan() {
  try {
    const told = await read("reload");
    const fates = Object.entries(told.engines).map(([profile, fate]) => `${profile}: ${fate}`);
    const lines = [...told.changes.map((change) => change.text), ...fates, ...told.warnings];
    const shown = lines.length ? lines : ["Nothing differs from what runs."];
    const items = shown.map((textContent) => el("li", { textContent }));
    $("differences").replaceChildren(el("ul", { className: "plan" }, ...items));
    show($("differences"), true);
    show($("reload"), told.changes.length > 0);
  } catch (error) {
    forget();
    say(error.message, "bad");
  }
}

$("reload-plan").onclick = plan;
$("reload").onclick = async () => {
  await act("reload");
  forget();
};
