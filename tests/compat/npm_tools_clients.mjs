// What users of OpenAI's and Anthropic's JavaScript clients do with tools and embeddings.
// Usage: npm_tools_clients.mjs BASE_URL MODEL

import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const question = { role: "user", content: "How is Verona?" };
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };

async function checkOpenAI() {
  const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0 });
  const cities = [];
  const weather = ({ city }) => (cities.push(city), "fair");
  const tools = [{ type: "function", function: { name: "weather", parameters, parse: JSON.parse, function: weather } }];
  for (const stream of [false, true]) {
    const runner = client.chat.completions.runTools({ model, messages: [question], tools, stream });
    assert.equal(await runner.finalContent(), "It is fair in Verona.");
  }
  assert.deepEqual(cities, ["Verona", "Verona"]);
  const tool = { type: "function", name: "weather", parameters, strict: false };
  const response = await client.responses.create({ model, input: "How is Verona?", tools: [tool] });
  const [call] = response.output.filter((item) => item.type === "function_call");
  assert.deepEqual(JSON.parse(call.arguments), { city: "Verona" });
  const streamed = await client.responses.stream({ model, input: "How is Verona?", tools: [tool] }).finalResponse();
  assert.equal(streamed.output.at(-1).arguments, call.arguments);
  // The client asks for base64 unless told otherwise.
  const input = ["To be", "or not"];
  const packed = await client.embeddings.create({ model, input });
  const plain = await client.embeddings.create({ model, input, encoding_format: "float" });
  assert.equal(packed.data.length, 2);
  plain.data[0].embedding.forEach((value, index) => assert.ok(Math.abs(value - packed.data[0].embedding[index]) < 1e-6));
}

async function checkAnthropic() {
  const client = new Anthropic({ baseURL: baseURL.replace(/\/v1$/, ""), apiKey: "any", maxRetries: 0 });
  const options = { model, max_tokens: 100, tools: [{ name: "weather", input_schema: parameters }] };
  const answer = await client.messages.create({ ...options, messages: [question] });
  assert.equal(answer.stop_reason, "tool_use");
  const [call] = answer.content;
  assert.deepEqual([call.name, call.input], ["weather", { city: "Verona" }]);
  const result = { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: "fair" }] };
  const messages = [question, { role: "assistant", content: answer.content }, result];
  const after = await client.messages.stream({ ...options, messages }).finalMessage();
  assert.equal(after.content[0].text, "It is fair in Verona.");
  const streamed = await client.messages.stream({ ...options, messages: [question] }).finalMessage();
  assert.deepEqual(streamed.content[0].input, { city: "Verona" });
  const counted = await client.messages.countTokens({ model, messages: [question], tools: options.tools });
  assert.equal(counted.input_tokens, answer.usage.input_tokens + answer.usage.cache_read_input_tokens);
}

await checkOpenAI();
await checkAnthropic();
console.log("tools runner, tool streams, responses, embeddings, messages with tools, token counts");
