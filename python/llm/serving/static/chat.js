// The chat page: one conversation on screen, all of them in the browser's storage.

import * as api from "./api.js";
import { hideBanner, showError } from "./banner.js";
import { byId, download, element } from "./dom.js";
import { confirmDeletion, drawList } from "./list.js";
import * as store from "./store.js";
import { editView, grow, isEnter, messageView } from "./view.js";

const SAVE_EVERY_MS = 1000;
const NEAR_END_PX = 80;
const THEMES = ["system", "light", "dark"];

let conversation = store.newConversation();
let views = [];
let running = null; // the AbortController of the answer that is being written
let written = Promise.resolve(); // settles once that answer has ended
let afterKey = loadModels;

const prompt = byId("prompt");
const scroller = byId("scroller");

function guarded(work) {
  try {
    work();
  } catch (error) {
    showError(new Error(`The browser doesn’t keep this conversation: ${error.message}`));
  }
}

function keep() {
  guarded(() => store.save(conversation));
}

function say(text) {
  byId("status").textContent = text;
}

function draw() {
  views = conversation.messages.map((message) => messageView(message, { edit, regenerate }));
  byId("messages").replaceChildren(...views.map((view) => view.element));
  byId("welcome").hidden = views.length > 0;
  document.title = views.length ? `${store.titleOf(conversation)} · Chat` : "Chat";
  drawConversations();
}

function drawConversations() {
  drawList(conversation, { open, rename, remove });
}

function scrollToEnd(isForced) {
  const missing = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  if (isForced || missing < NEAR_END_PX) scroller.scrollTop = scroller.scrollHeight;
}

// Conversations

async function show(one) {
  await stop();
  conversation = one;
  hideBanner();
  draw();
  scrollToEnd(true);
  openSidebar(false);
  prompt.focus();
}

function open(id) {
  const found = store.conversation(id);
  if (found) show(found);
}

function rename(one, title) {
  if (title?.trim()) {
    const kept = one.id === conversation.id ? conversation : one;
    guarded(() => store.rename(kept, title));
  }
  draw();
}

async function remove(one) {
  if (!(await confirmDeletion(store.titleOf(one)))) return;
  if (one.id === conversation.id) await show(store.newConversation());
  store.remove(one.id);
  drawConversations();
}

// Messages

function send() {
  const content = prompt.value.trim();
  if (!content || running) return;
  prompt.value = "";
  grow(prompt);
  conversation.messages.push({ role: "user", content });
  answer();
}

async function edit({ message }) {
  await stop();
  const view = views.find((one) => one.message === message);
  if (view) editView(view, (text) => {
    const at = conversation.messages.indexOf(message);
    const isChanged = text !== null && at >= 0;
    if (isChanged) message.content = text;
    if (isChanged && message.role === "user") {
      conversation.messages.length = at + 1;
      answer();
    } else {
      if (isChanged) keep();
      draw();
      views[at]?.element.focus();
    }
  });
}

async function regenerate(message) {
  await stop();
  const at = conversation.messages.indexOf(message);
  if (at < 0) return;
  conversation.messages.length = at;
  answer();
}

function requestOf(messages) {
  const { system, ...numbers } = store.parameters();
  const turns = messages.map(({ role, content }) => ({ role, content }));
  if (system) turns.unshift({ role: "system", content: system });
  return { model: byId("model").value, messages: turns, ...numbers };
}

function answer() {
  written = write();
}

/** Requests an answer to the conversation and shows it as it comes. */
async function write() {
  hideBanner();
  const controller = new AbortController();
  const own = conversation;
  const request = requestOf(own.messages);
  const message = { role: "assistant", content: "", writing: true };
  own.messages.push(message);
  setRunning(controller);
  draw();
  keep();
  scrollToEnd(true);
  const redraw = () => views.find((view) => view.message === message)?.update();
  let problem = null;
  try {
    await receive(request, controller.signal, message, redraw);
  } catch (error) {
    if (controller.signal.aborted) message.stopped = true;
    else problem = error;
  }
  finish(own, message, problem);
  redraw();
}

/** Adds the chunks of an answer to `message` and calls `redraw` at most once a frame. */
async function receive(request, signal, message, redraw) {
  const started = performance.now();
  let drawn = 0;
  let kept = started;
  for await (const chunk of api.chat(request, signal)) {
    const now = performance.now();
    add(message, chunk, started, now);
    if (!drawn) {
      drawn = requestAnimationFrame(() => {
        drawn = 0;
        redraw();
        scrollToEnd(false);
      });
    }
    if (now - kept > SAVE_EVERY_MS) {
      kept = now;
      keep();
    }
  }
}

function add(message, chunk, started, now) {
  if (chunk.usage) message.usage = chunk.usage;
  const choice = chunk.choices[0];
  if (!choice) return;
  const delta = choice.delta;
  const reasoning = delta.reasoning_content ?? delta.reasoning;
  if (delta.content) message.content += delta.content;
  if (reasoning) message.reasoning = (message.reasoning ?? "") + reasoning;
  for (const part of delta.tool_calls ?? []) addToolCall(message, part);
  if (choice.finish_reason) message.finish = choice.finish_reason;
  if (!delta.content && !reasoning && !delta.tool_calls) return;
  message.chunks = (message.chunks ?? 0) + 1;
  message.timing ??= { first: (now - started) / 1000, seconds: 0 };
  message.timing.seconds = (now - started) / 1000 - message.timing.first;
}

function addToolCall(message, part) {
  message.toolCalls ??= [];
  const call = (message.toolCalls[part.index] ??= { name: "", arguments: "" });
  call.name += part.function?.name ?? "";
  call.arguments += part.function?.arguments ?? "";
}

function finish(own, message, problem) {
  delete message.writing;
  setRunning(null);
  const isEmpty = !message.content && !message.reasoning && !message.toolCalls;
  if (isEmpty && (problem || message.stopped)) own.messages.splice(own.messages.indexOf(message), 1);
  if (store.conversation(own.id)) guarded(() => store.save(own)); // unless it was deleted meanwhile
  if (isEmpty) draw();
  else drawConversations();
  if (problem) {
    afterKey = () => answerAgain(own);
    showError(problem, () => answerAgain(own));
  }
  say(problem ? "" : message.stopped ? "Stopped." : `The answer is complete: ${message.usage?.completion_tokens} tokens.`);
  if (!problem) focusPrompt();
}

/** Returns the focus to the message field, unless it is elsewhere or would open the keyboard of a phone. */
function focusPrompt() {
  const isFree = document.activeElement === document.body || document.activeElement === null;
  if (isFree && matchMedia("(pointer: fine)").matches) prompt.focus({ preventScroll: true });
}

/** Answers the last message of the user again, after an error. */
function answerAgain(own) {
  if (own !== conversation || running) return;
  if (own.messages.at(-1)?.role === "assistant") own.messages.pop();
  if (own.messages.length) answer();
}

/** Stops the answer that is being written, if there is one, and waits for its end. */
async function stop() {
  running?.abort();
  await written;
}

function setRunning(controller) {
  running = controller;
  byId("send").hidden = Boolean(controller);
  byId("stop").hidden = !controller;
  byId("messages").setAttribute("aria-busy", String(Boolean(controller)));
  if (controller) say("The model is answering.");
}

// Model, parameters, theme

async function loadModels() {
  try {
    const names = await api.models();
    const chosen = store.model();
    const options = names.map((name) => element("option", { value: name, selected: name === chosen }, name));
    byId("model").replaceChildren(...options);
    hideBanner();
  } catch (error) {
    afterKey = loadModels;
    showError(error, loadModels);
  }
}

function loadParameters() {
  for (const [name, value] of Object.entries(store.parameters())) {
    const field = byId("parameters").elements[name];
    if (field) field.value = value;
  }
}

function keepParameters() {
  const values = {};
  for (const field of byId("parameters").elements) {
    const isGiven = field.value !== "" && field.validity.valid;
    if (isGiven) values[field.name] = field.type === "number" ? Number(field.value) : field.value;
  }
  guarded(() => store.saveParameters(values));
}

function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme-name").textContent = theme;
  byId("theme").ariaLabel = `Theme: ${theme}`; // a phone shows the second word only
}

function switchTheme() {
  const theme = THEMES[(THEMES.indexOf(store.theme()) + 1) % THEMES.length];
  guarded(() => store.saveTheme(theme));
  setTheme(theme);
}

function openSidebar(isOpen) {
  byId("sidebar").classList.toggle("open", isOpen);
  byId("shade").hidden = !isOpen;
  byId("toggle-sidebar").setAttribute("aria-expanded", String(isOpen));
}

function toggleParameters() {
  const form = byId("parameters");
  form.hidden = !form.hidden;
  byId("toggle-parameters").setAttribute("aria-expanded", String(!form.hidden));
  if (!form.hidden) form.elements[0].focus();
}

function exportAs(extension, type, text) {
  const name = store.titleOf(conversation).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "chat";
  download(`${name}.${extension}`, type, text(conversation, store.parameters().system));
  byId("export").open = false;
}

function onKey(event) {
  if (event.key !== "Escape" || byId("confirm").open) return;
  if (byId("export").open) byId("export").open = false;
  else if (byId("sidebar").classList.contains("open")) openSidebar(false);
  else stop();
}

function start() {
  byId("composer").addEventListener("submit", (event) => (event.preventDefault(), send()));
  prompt.addEventListener("input", () => grow(prompt));
  prompt.addEventListener("keydown", (event) => {
    if (isEnter(event)) (event.preventDefault(), send());
  });
  byId("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    api.useKey(byId("key").value);
    byId("key").value = "";
    const again = afterKey;
    await loadModels();
    if (again !== loadModels && byId("banner").hidden) again();
  });
  document.addEventListener("keydown", onKey);
  byId("stop").onclick = stop;
  byId("dismiss").onclick = hideBanner;
  byId("new-chat").onclick = () => show(store.newConversation());
  byId("toggle-sidebar").onclick = () => openSidebar(!byId("sidebar").classList.contains("open"));
  byId("shade").onclick = () => openSidebar(false);
  byId("toggle-parameters").onclick = toggleParameters;
  byId("parameters").addEventListener("input", keepParameters);
  byId("parameters").addEventListener("submit", (event) => event.preventDefault());
  byId("model").onchange = () => guarded(() => store.saveModel(byId("model").value));
  byId("theme").onclick = switchTheme;
  byId("export-markdown").onclick = () => exportAs("md", "text/markdown", store.asMarkdown);
  byId("export-json").onclick = () => exportAs("json", "application/json", store.asJson);
  window.addEventListener("storage", (event) => store.isConversationKey(event.key) && drawConversations());
  setTheme(store.theme());
  loadParameters();
  conversation = store.conversations()[0] ?? conversation;
  for (const message of conversation.messages) delete message.writing; // the page was closed while it was written
  draw();
  scrollToEnd(true);
  loadModels();
}

start();
