// Asks once as argv says, by openai's client for Node, for a chat, or for a response where there is `input`: URL, key,
// options of the request, its body, and milliseconds of silence before fetch gives up, of its own accord after 300 s.
// (A timeout that was given to the client is not sent along, one that was given to the request is.)
import OpenAI from "openai";

const [url, key, options, body, silence] = process.argv.slice(2);
const api = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0, fetchOptions: silence && await patience(+silence) });
const told = { text: "", error: null, status: null };
try {
  const asked = JSON.parse(body);
  const reply = await (asked.input ? api.responses : api.chat.completions).create(asked, JSON.parse(options));
  if (reply.choices) told.text = reply.choices[0].message.content;
  else if (reply.output) told.text = reply.output_text;
  else for await (const chunk of reply) told.text += textOf(chunk);
} catch (error) {
  told.error = error.message;
  told.status = error.status ?? null;
}
console.log(JSON.stringify(told));

function textOf(chunk) {
  return chunk.type ? (chunk.type === "response.output_text.delta" ? chunk.delta : "") : chunk.choices[0]?.delta?.content ?? "";
}

// The class of the agent that fetch itself uses, which it makes when it is first called.
async function patience(silence) {
  await fetch("data:,");
  const Agent = globalThis[Symbol.for("undici.globalDispatcher.1")].constructor;
  return { dispatcher: new Agent({ headersTimeout: silence, bodyTimeout: silence }) };
}
