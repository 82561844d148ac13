// The AI SDK with its provider for OpenAI-compatible servers: it checks each chunk by a schema.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateObject, generateText, jsonSchema, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";
import { Tally, address } from "./tally.mjs";

const { url, model } = address();
const tally = new Tally("ai");
const provider = createOpenAICompatible({
  name: "gptjax", baseURL: `${url}/v1`, apiKey: "none", includeUsage: true, supportsStructuredOutputs: true,
});
const asked = { model: provider(model), prompt: "How is the weather?", maxRetries: 0, maxOutputTokens: 120, seed: 4 };
const City = z.object({ name: z.string().max(8), kind: z.enum(["town", "village"]) });
const weather = tool({
  description: "Tells the weather.",
  inputSchema: z.object({ city: z.string().max(8) }),
  execute: async ({ city }) => `sunny in ${city}`,
});

await tally.calling("generateText", async () => {
  const found = await generateText({ ...asked, system: "Be brief." });
  tally.check(found.text.length > 0, "a text");
  tally.check(found.usage.totalTokens > 0, `usage ${JSON.stringify(found.usage)}`);
  tally.check(["stop", "length"].includes(found.finishReason), found.finishReason);
});
await tally.calling("streamText", async () => {
  const whole = await generateText(asked);
  const stream = streamText({ ...asked, onError: ({ error }) => { throw error; } });
  let text = "";
  for await (const part of stream.textStream) text += part;
  tally.check(text === whole.text, `streamed ${text}, whole ${whole.text}`);
  tally.check((await stream.usage).totalTokens > 0, "usage");
  tally.check((await stream.finishReason) === whole.finishReason, "reason");
});
await tally.calling("messages", async () => {
  const messages = [
    { role: "user", content: [{ type: "text", text: "Hello" }] },
    { role: "assistant", content: "Hi" },
    { role: "user", content: "And now?" },
  ];
  tally.check((await generateText({ ...asked, prompt: undefined, messages })).text, "a text");
});
for (const [name, schema] of [["zod", City], ["JSON", jsonSchema({ type: "object", properties: { a: { type: "integer" } }, required: ["a"], additionalProperties: false })]]) {
  await tally.calling(`generateObject, ${name}`, async () => {
    const { object } = await generateObject({ ...asked, schema });
    tally.check(name === "zod" ? City.safeParse(object).success : Number.isInteger(object.a), JSON.stringify(object));
  });
  await tally.calling(`streamObject, ${name}`, async () => {
    const stream = streamObject({ ...asked, schema, onError: ({ error }) => { throw error; } });
    let parts = 0;
    for await (const _ of stream.partialObjectStream) parts += 1;
    tally.check(parts > 0 && (await stream.object), `${parts} parts`);
  });
}
await tally.calling("generateObject, enum", async () => {
  const { object } = await generateObject({ ...asked, output: "enum", enum: ["sun", "rain"] });
  tally.check(["sun", "rain"].includes(object), object);
});
for (const toolChoice of ["required", { type: "tool", toolName: "weather" }, "auto", "none"]) {
  await tally.calling(`tools, ${JSON.stringify(toolChoice)}`, async () => {
    const { toolCalls, toolResults } = await generateText({ ...asked, tools: { weather }, toolChoice });
    tally.check(toolCalls.length > 0 || ["auto", "none"].includes(toolChoice), "a call");
    tally.check(toolCalls.every((call) => !call.invalid), "valid calls");
    tally.check(toolResults.length === toolCalls.length, "each call has its result");
    const stream = streamText({ ...asked, tools: { weather }, toolChoice, onError: ({ error }) => { throw error; } });
    const kinds = new Set();
    for await (const part of stream.fullStream) kinds.add(part.type);
    const streamed = await stream.toolCalls;
    tally.check(JSON.stringify(streamed.map((c) => c.input)) === JSON.stringify(toolCalls.map((c) => c.input)), "streamed calls");
    tally.check(!toolCalls.length || kinds.has("tool-input-delta"), [...kinds].join(" "));
    tally.check(!kinds.has("error"), [...kinds].join(" "));
  });
}
await tally.calling("steps", async () => {
  const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : "required" });
  const found = await generateText({ ...asked, tools: { weather }, stopWhen: stepCountIs(2), prepareStep });
  tally.check(found.steps.length === 2, `${found.steps.length} steps`);
});
await tally.calling("embedMany", async () => {
  const { embeddings } = await embedMany({ model: provider.embeddingModel(model), values: ["a", "b"], maxRetries: 0 });
  tally.check(embeddings.length === 2 && embeddings[0].length > 1, "two vectors");
});
await tally.calling("completion", async () => {
  const found = await generateText({ ...asked, model: provider.completionModel(model), maxOutputTokens: 10 });
  tally.check(found.text.length > 0, "a text");
});
await tally.calling("a stream that is left", async () => {
  const leaving = new AbortController();
  const stream = streamText({ ...asked, maxOutputTokens: 1000, abortSignal: leaving.signal, onError() {} });
  for await (const part of stream.fullStream) { if (part.type === "text-delta") leaving.abort(); }
  tally.check(leaving.signal.aborted, "left");
});
try {
  await generateText({ ...asked, model: provider("nobody") });
  tally.check(false, "an unknown model was taken");
} catch (error) {
  tally.check(error.statusCode === 404 && /does not exist/.test(error.message), `${error}`);
}
tally.end();
