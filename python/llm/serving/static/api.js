// Calls to the server that this page comes from.

const KEY = "llm-oxide.key"; // kept for this tab only

export class ServerError extends Error {
  constructor(status, { message, code } = {}) {
    super(message || `The server answered with status ${status}.`);
    this.status = status;
    this.code = code ?? null;
  }
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new ServerError(answer.status, body.error);
}

/** Returns the names of the served models. */
export async function models() {
  const answer = await call("v1/models");
  return (await answer.json()).data.map((model) => model.id);
}

/** Yields the chunks of a streamed chat; throws a `ServerError` for an error inside the stream too. */
export async function* chat(request, signal) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const answer = await call("v1/chat/completions", { method: "POST", body, signal });
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(answer.status, chunk.error);
    yield chunk;
  }
  throw new ServerError(answer.status, { message: "The connection ended before the answer was complete." });
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
    }
  } finally {
    await reader.cancel().catch(() => {}); // an abandoned stream ends its request on the server
  }
}
