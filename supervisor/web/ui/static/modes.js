// The calendar: what holds, what follows and what that would do, and the ways to say otherwise.
import { $, el, put, show, span } from "./dom.js";
import { act, read, say, state } from "./live.js";

let planned = "";
let built = "";

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
  if (mode.next && mode.next !== planned) plan(mode.next);
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
  const buttons = [];
  for (const name of Object.keys(modes)) {
    buttons.push(make(`Plan ${name}`, () => plan(name)), make(`Change to ${name}`, () => change(name)));
  }
  const auto = make("Back to the calendar", () => act("mode/auto"));
  auto.id = "auto";
  auto.className = "main";
  $("mode-buttons").replaceChildren(...buttons, auto);
}

function change(name) {
  const hours = $("hours").value;
  return act(`mode/${name}${hours ? `?hours=${hours}` : ""}`);
}

async function plan(name) {
  planned = name;
  try {
    const told = await read(`mode/${name}/plan`);
    $("plan").replaceChildren(el("h3", { textContent: `What a change to ${name} would do now` }), steps(told));
    show($("plan"), true);
  } catch (error) {
    say(error.message, "bad");
  }
}

function steps(told) {
  const lines = [
    `serve ${told.serves.join(", ")}`,
    ...told.drains.map((one) => `drain ${one.profile}: ${one.in_flight} in flight, ${span(told.drain_s)} at most`),
    ...told.stops.map((name) => `stop ${name}: idle`),
    ...told.starts.map((one) => `start ${one.profile}: ${one.verdict}${one.seconds ? `, about ${span(one.seconds)}` : ""}`),
  ];
  return el("ul", { className: "plan" }, ...lines.map((textContent) => el("li", { textContent })));
}
