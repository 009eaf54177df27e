// Asks for one chat as argv says, by openai's client for Node: URL, key, options of the request, its body.
// (A timeout that was given to the client is not sent along, one that was given to the request is.)
import OpenAI from "openai";

const [url, key, options, body] = process.argv.slice(2);
const api = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
const told = { text: "", error: null, status: null };
try {
  const reply = await api.chat.completions.create(JSON.parse(body), JSON.parse(options));
  if (reply.choices) told.text = reply.choices[0].message.content;
  else for await (const chunk of reply) told.text += chunk.choices[0]?.delta?.content ?? "";
} catch (error) {
  told.error = error.message;
  told.status = error.status ?? null;
}
console.log(JSON.stringify(told));
