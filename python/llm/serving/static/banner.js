// The banner that says what went wrong and how to go on.

import { byId } from "./dom.js";

const WORDS = {
  context_length_exceeded: "The conversation is too long for the model. Start a new chat, or shorten a message.",
  model_loading: "The model is still loading.",
  queue_full: "The server is busy.",
  chat_template_missing: "This model has no chat template, so it can’t chat.",
};

export function hideBanner() {
  byId("banner").hidden = true;
}

/** Shows an error; `retry`, if given, is offered as a button, and an API key is asked for where it is missing. */
export function showError(error, retry) {
  const needsKey = error.status === 401;
  byId("banner-text").textContent = textOf(error);
  byId("key-form").hidden = !needsKey;
  byId("retry").hidden = needsKey || !retry;
  byId("retry").onclick = retry ?? null;
  byId("banner").hidden = false;
  if (needsKey) byId("key").focus();
}

function textOf(error) {
  if (error.status === 401) return "This server needs an API key. It is kept until this tab is closed.";
  if (error.status === undefined && error instanceof TypeError) return "The server can’t be reached.";
  const known = WORDS[error.code] ?? (error.status === 503 ? "The server can’t answer now." : "");
  return known && error.message ? `${known} (${error.message})` : known || error.message;
}
