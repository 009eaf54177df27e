// The calendar: what holds, what follows and what that would do, and the ways to say otherwise.
import { $, el, put, show, span } from "./dom.js";
import { act, read, say, state } from "./live.js";

/** The mode whose plan is shown, and whether a person asked for it. */
let planned = "", asked = false;
let built = "";
$("plan-go").onclick = () => change(planned);
$("plan-cancel").onclick = () => plan(state.daemon.daemon.mode.next, false);

export function render() {
  const { mode, modes } = state.daemon.daemon;
  show($("mode"), mode);
  show($("overrides"), mode && state.me.admin);
  if (!mode) {
    put($("now-mode"), "No modes are configured.");
    return;
  }
  put($("mode"), mode.forced ? `${mode.name}, forced` : mode.name);
  put($("now-mode"), `${mode.name}, ${mode.forced ? "forced by a person" : "by the calendar"}`);
  put($("next-mode"), words(mode));
  if (JSON.stringify(modes) !== built) build(modes);
  show($("auto"), mode.forced);
  if (!asked && mode.next !== planned) plan(mode.next, false);
}

function words(mode) {
  const back = mode.rolled_back ? ` It came back: ${mode.rolled_back}.` : "";
  const warming = mode.warming.length ? ` Warming: ${mode.warming.join(", ")}.` : "";
  const next = mode.until ? `Next: ${mode.next ?? "?"} at ${mode.until}.` : "Until told otherwise.";
  return next + warming + back;
}

function build(modes) {
  built = JSON.stringify(modes);
  const make = (textContent, onclick) => el("button", { type: "button", textContent, onclick });
  const buttons = Object.keys(modes).map((name) => make(`Plan ${name}`, () => plan(name, true)));
  const auto = make("Back to the calendar", () => act("mode/auto"));
  auto.id = "auto";
  auto.className = "main";
  $("mode-buttons").replaceChildren(...buttons, auto);
}

async function change(name) {
  const hours = $("hours").value;
  await act(`mode/${name}${hours ? `?hours=${hours}` : ""}`);
  asked = false;
  planned = ""; // what follows may be another one now
}

/** What a change to the mode would do; one that was asked for can be carried out or dropped. */
async function plan(name, byPerson) {
  planned = name;
  asked = byPerson;
  show($("plan-buttons"), byPerson);
  if (!name) return show($("plan"), false);
  put($("plan-go"), `Change to ${name}`);
  try {
    const told = await read(`mode/${name}/plan`);
    if (planned !== name) return undefined; // another one was asked for meanwhile
    put($("plan-title"), `What a change to ${name} would do now`);
    $("plan-steps").replaceChildren(...steps(told));
    show($("plan"), true);
  } catch (error) {
    say(error.message, "bad");
  }
  return undefined;
}

function steps(told) {
  const lines = [
    `serve ${told.serves.join(", ")}`,
    ...told.drains.map((one) => `drain ${one.profile}: ${one.in_flight} in flight, ${span(told.drain_s)} at most`),
    ...told.stops.map((name) => `stop ${name}: idle`),
    ...told.starts.map((one) => `start ${one.profile}: ${one.verdict}${one.seconds ? `, about ${span(one.seconds)}` : ""}`),
  ];
  return lines.map((textContent) => el("li", { textContent }));
}
