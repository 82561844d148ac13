// openai-node: chats, completions, embeddings and its helpers, plain and streamed.

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { Tally, address } from "./tally.mjs";

const { url, model } = address();
const tally = new Tally("openai");
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0, timeout: 300_000 });
const messages = [{ role: "user", content: "How is the weather?" }];
const body = { model, messages, max_tokens: 120, seed: 5 };
const parameters = {
  type: "object",
  properties: { city: { type: "string", maxLength: 8 } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", description: "Tells it.", parameters } }];
const City = z.object({ name: z.string().max(8), people: z.number().int().min(0).max(99) });

for (const n of [1, 3]) {
  for (const more of [{}, { logprobs: true, top_logprobs: 4 }, { stop: ["e"] }]) {
    await tally.calling(`chat, n ${n}, ${JSON.stringify(more)}`, async () => {
      const whole = await client.chat.completions.create({ ...body, n, ...more });
      const stream = await client.chat.completions.create({ ...body, n, ...more, stream: true });
      const texts = Array(n).fill("");
      const scores = Array(n).fill(0);
      for await (const chunk of stream)
        for (const choice of chunk.choices) {
          texts[choice.index] += choice.delta.content ?? "";
          scores[choice.index] += choice.logprobs?.content?.length ?? 0;
        }
      for (const choice of whole.choices) {
        tally.check(texts[choice.index] === choice.message.content, `streamed text of n ${n}`);
        tally.check(scores[choice.index] === (choice.logprobs?.content.length ?? 0), "its scores");
      }
    });
  }
}
for (const tool_choice of ["none", "auto", "required", { type: "function", function: { name: "weather" } }]) {
  await tally.calling(`tools, ${JSON.stringify(tool_choice)}`, async () => {
    const [choice] = (await client.chat.completions.create({ ...body, tools, tool_choice })).choices;
    const calls = choice.message.tool_calls ?? [];
    tally.check((choice.finish_reason === "tool_calls") === calls.length > 0, choice.finish_reason);
    tally.check(calls.length > 0 || ["none", "auto"].includes(tool_choice), "a call");
    tally.check(calls.every((c) => "city" in JSON.parse(c.function.arguments)), "its arguments");
    const final = await client.chat.completions.stream({ ...body, tools, tool_choice }).finalMessage();
    const same = (final.tool_calls ?? []).map((call) => call.function.arguments);
    tally.check(`${same}` === `${calls.map((call) => call.function.arguments)}`, `streamed: ${same}`);
  });
}
await tally.calling("parse", async () => {
  const format = zodResponseFormat(City, "city");
  const asked = { ...body, response_format: format };
  const parsed = await client.chat.completions.parse(asked);
  tally.check(City.safeParse(parsed.choices[0].message.parsed).success, "a city");
  const stream = client.chat.completions.stream(asked);
  tally.check(City.safeParse((await stream.finalMessage()).parsed).success, "a streamed city");
  tally.check((await stream.totalUsage()) !== undefined, "usage");
});
await tally.calling("tools that run", async () => {
  let called = 0;
  const weather = { name: "weather", description: "Tells it.", parameters, parse: JSON.parse };
  weather.function = () => { called += 1; return "sunny"; };
  const runner = client.chat.completions.runTools(
    { ...body, tools: [{ type: "function", function: weather }], tool_choice: { type: "function", function: { name: "weather" } } },
  );
  await runner.done();
  tally.check(called === 1, `${called} calls`);
});
for (const echo of [false, true]) {
  await tally.calling(`completion, echo ${echo}`, async () => {
    const asked = { model, prompt: ["The cat", "A dog"], max_tokens: 8, n: 2, echo, logprobs: 2, seed: 2 };
    const whole = await client.completions.create(asked);
    const texts = Array(4).fill("");
    for await (const chunk of await client.completions.create({ ...asked, stream: true }))
      for (const choice of chunk.choices) texts[choice.index] += choice.text;
    for (const choice of whole.choices) tally.check(texts[choice.index] === choice.text, "streamed");
  });
}
await tally.calling("embeddings", async () => {
  const found = await client.embeddings.create({ model, input: ["a", "b"] });
  const plain = await client.embeddings.create({ model, input: ["a", "b"], encoding_format: "float" });
  const near = found.data[1].embedding.every((x, i) => Math.abs(x - plain.data[1].embedding[i]) < 1e-6);
  tally.check(near, "base64 and numbers agree");
});
await tally.calling("models", async () => {
  const names = [];
  for await (const one of client.models.list()) names.push(one.id);
  tally.check(names.includes(model), `${names}`);
  tally.check((await client.models.retrieve(model)).id === model, "one model");
});
await tally.calling("a stream that is left", async () => {
  const stream = await client.chat.completions.create({ ...body, stream: true, max_tokens: 1000 });
  for await (const chunk of stream) { if (chunk) break; }
  tally.check(stream.controller.signal.aborted, "aborted");
});
for (const [kind, wrong] of [[OpenAI.NotFoundError, { model: "nobody" }], [OpenAI.BadRequestError, { top_p: 2 }]]) {
  try {
    await client.chat.completions.create({ ...body, ...wrong });
    tally.check(false, `${kind.name} was not raised`);
  } catch (error) {
    tally.check(error instanceof kind && error.param === Object.keys(wrong)[0], `${error}`);
  }
}
tally.end();
