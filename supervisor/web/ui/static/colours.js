// Each profile keeps one colour, on the bars and beside its name.
import { state } from "./live.js";

const MANY = 8;

export function colour(profile) {
  return `c${Math.max(0, Object.keys(state.engines).sort().indexOf(profile)) % MANY}`;
}
