// Asks a server by the clients of npm, and prints what they gave: node clients.mjs URL, texts as JSON on stdin.
import { readFileSync } from "node:fs";
import { Ollama } from "ollama";
import OpenAI from "openai";

const url = process.argv[2];
const texts = JSON.parse(readFileSync(0, "utf8"));

const ollama = new Ollama({ host: url });
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const told = async (promise) => promise.then(() => "nothing", (error) => error.message);

const embedded = await ollama.embed({ model: "leaf", input: texts });
const created = await openai.embeddings.create({ model: "leaf", input: texts });
const plain = await openai.embeddings.create({ model: "leaf", input: texts, encoding_format: "float" });
console.log(
  JSON.stringify({
    ollama: embedded.embeddings,
    tokens: embedded.prompt_eval_count,
    legacy: (await ollama.embeddings({ model: "leaf", prompt: texts[0] })).embedding,
    models: (await ollama.list()).models.map((model) => model.name),
    openai: created.data.map((item) => Array.from(item.embedding)),
    float: plain.data.map((item) => item.embedding),
    usage: created.usage.total_tokens,
    errors: [
      await told(ollama.embed({ model: "no", input: "x" })),
      await told(openai.embeddings.create({ model: "no", input: "x" })),
    ],
  }),
);
