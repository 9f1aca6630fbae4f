// Conversations and settings in the browser's storage. Each conversation has its own key, so two tabs keep both.

const CHAT = "llm-oxide.chat.";
const PARAMETERS = "llm-oxide.parameters";
const MODEL = "llm-oxide.model";
const THEME = "llm-oxide.theme";
const TITLE_CHARS = 60;

function read(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Returns an id; `crypto.randomUUID` is missing on pages without HTTPS. */
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation() {
  const now = new Date().toISOString();
  return { id: newId(), title: "", created: now, updated: now, messages: [] };
}

export function isConversationKey(key) {
  return key === null || key.startsWith(CHAT);
}

/** Returns all conversations, the one changed last first. */
export function conversations() {
  const keys = Object.keys(localStorage).filter((key) => key.startsWith(CHAT));
  const found = keys.map((key) => read(key, null)).filter((one) => Array.isArray(one?.messages));
  return found.sort((a, b) => (a.updated < b.updated ? 1 : -1));
}

export const conversation = (id) => read(CHAT + id, null);

/** Stores a conversation; throws if the browser's storage is full. */
export function save(one) {
  one.updated = new Date().toISOString();
  localStorage.setItem(CHAT + one.id, JSON.stringify(one));
}

/** Stores a new title; unlike `save`, it leaves the conversation's place in the list. */
export function rename(one, title) {
  one.title = title.trim();
  localStorage.setItem(CHAT + one.id, JSON.stringify(one));
}

export function remove(id) {
  localStorage.removeItem(CHAT + id);
}

export function titleOf(one) {
  const first = one.messages.find((message) => message.role === "user")?.content ?? "";
  const title = one.title || first.trim().split("\n")[0];
  return title.length > TITLE_CHARS ? `${title.slice(0, TITLE_CHARS)}…` : title || "New chat";
}

export const parameters = () => read(PARAMETERS, {});
export const saveParameters = (values) => localStorage.setItem(PARAMETERS, JSON.stringify(values));
export const model = () => localStorage.getItem(MODEL);
export const saveModel = (name) => localStorage.setItem(MODEL, name);
export const theme = () => localStorage.getItem(THEME) ?? "system";
export const saveTheme = (name) => localStorage.setItem(THEME, name);

export function asJson(one, system) {
  const messages = system ? [{ role: "system", content: system }, ...one.messages] : one.messages;
  return JSON.stringify({ ...one, title: titleOf(one), messages }, null, 2);
}

export function asMarkdown(one, system) {
  const parts = [`# ${titleOf(one)}`];
  if (system) parts.push(`## System\n\n${system}`);
  for (const message of one.messages) {
    const text = [message.content, ...(message.toolCalls ?? []).map((call) => "```json\n" + toolText(call) + "\n```")];
    const reasoning = message.reasoning ? `> ${message.reasoning.trim().replaceAll("\n", "\n> ")}\n\n` : "";
    const role = message.role === "user" ? "You" : "Assistant";
    parts.push(`## ${role}\n\n${reasoning}${text.filter(Boolean).join("\n\n")}`);
  }
  return parts.join("\n\n") + "\n";
}

/** Returns a tool call as text, its arguments indented if they are complete JSON. */
export function toolText({ name, arguments: given }) {
  try {
    return `${name}(${JSON.stringify(JSON.parse(given), null, 2)})`;
  } catch {
    return `${name}(${given}`;
  }
}
