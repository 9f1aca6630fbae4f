// What users of OpenAI's and Anthropic's JavaScript clients do, against a server of this package.
// Usage: npm_clients.mjs BASE_URL MODEL

import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const messages = [{ role: "user", content: "What news?" }];
const free = { seed: 1, ignore_eos: true };

async function checkOpenAI() {
  const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0 });
  const options = { model, messages, max_tokens: 12, ...free };
  const whole = (await client.chat.completions.create(options)).choices[0].message.content;
  let streamed = "";
  for await (const chunk of await client.chat.completions.create({ ...options, stream: true })) {
    streamed += chunk.choices[0].delta.content ?? "";
  }
  assert.equal(streamed, whole);
  const request = { model, input: "What news?", max_output_tokens: 12, ...free };
  const response = await client.responses.create(request);
  let text = "";
  for await (const event of await client.responses.create({ ...request, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.equal(text, whole);
  assert.equal(response.output_text, whole);
  const after = await client.responses.create({ ...request, previous_response_id: response.id });
  assert.deepEqual((await client.responses.retrieve(after.id)).output, after.output);
  await client.responses.delete(after.id);
  await assert.rejects(client.responses.retrieve(after.id), OpenAI.NotFoundError);
  await assert.rejects(client.chat.completions.create({ ...options, model: "other" }), OpenAI.NotFoundError);
  return whole;
}

async function checkAnthropic(whole) {
  const client = new Anthropic({ baseURL: baseURL.replace(/\/v1$/, ""), apiKey: "any", maxRetries: 0 });
  const options = { model, messages, max_tokens: 12, ...free };
  const message = await client.messages.create(options);
  assert.equal(message.content[0].text, whole);
  assert.equal(message.stop_reason, "max_tokens");
  const final = await client.messages.stream(options).finalMessage();
  assert.deepEqual(final.content, message.content);
  const { input_tokens } = await client.messages.countTokens({ model, messages });
  assert.equal(input_tokens, message.usage.input_tokens + message.usage.cache_read_input_tokens);
  await assert.rejects(client.messages.create({ ...options, model: "other" }), Anthropic.NotFoundError);
}

await checkAnthropic(await checkOpenAI());
console.log("openai and @anthropic-ai/sdk from npm: chats, responses, messages, streams and errors work");
