// Draws the messages of a conversation.

import { button, copyButton, element } from "./dom.js";
import { codeBlock, renderInto } from "./markdown.js";
import { toolText } from "./store.js";

/** Returns a message's element; `update()` draws what changed, for a message that is still being written. */
export function messageView(message, actions) {
  const isUser = message.role === "user";
  const body = element("div", { className: "body" });
  const parts = isUser ? userParts(body, message) : assistantParts(body, message);
  const figures = element("span", { className: "figures" });
  const buttons = [copyButton(() => message.content), button("Edit", () => actions.edit(view))];
  if (!isUser) buttons.push(button("Regenerate", () => actions.regenerate(message)));
  const foot = element("div", { className: "foot" }, figures, ...buttons);
  const name = element("h2", { className: "name" }, isUser ? "You" : "Assistant");
  const item = element("li", { className: `message ${message.role}`, tabIndex: -1 }, name, body, foot);
  const update = () => {
    parts();
    figures.textContent = figuresOf(message);
    item.classList.toggle("writing", Boolean(message.writing));
  };
  const view = { element: item, body, foot, message, update };
  update();
  return view;
}

function userParts(body, message) {
  body.classList.add("typed");
  return () => (body.textContent = message.content);
}

function assistantParts(body, message) {
  const thoughts = element("div");
  const reasoning = element("details", { className: "reasoning" }, element("summary", {}, "Reasoning"), thoughts);
  const text = element("div", { className: "markdown" });
  const calls = element("div");
  const note = element("p", { className: "note" });
  body.append(reasoning, text, calls, note);
  return () => {
    reasoning.hidden = !message.reasoning;
    renderInto(thoughts, message.reasoning ?? "");
    renderInto(text, message.content);
    calls.replaceChildren(...(message.toolCalls ?? []).map((call) => codeBlock(toolText(call), "tool call")));
    note.textContent = noteOf(message);
  };
}

function noteOf({ finish, stopped, content, toolCalls, writing }) {
  if (stopped) return "Stopped.";
  if (finish === "length") return "The answer reached the limit of tokens.";
  return !writing && !content && !toolCalls?.length ? "The answer is empty." : "";
}

function figuresOf({ usage, timing, chunks }) {
  if (!timing) return "";
  const tokens = usage?.completion_tokens ?? chunks;
  const about = usage ? "" : "about ";
  const parts = [`${about}${tokens} ${tokens === 1 ? "token" : "tokens"}`];
  if (chunks > 1 && timing.seconds > 0) parts.push(`${about}${((tokens - 1) / timing.seconds).toFixed(1)} tokens/s`);
  if (usage) parts.push(`${usage.prompt_tokens} in the prompt`);
  parts.push(`first after ${timing.first.toFixed(2)} s`);
  return parts.join(" · ");
}

/** Turns a message into a field; `done(text)` is called with the new text, or with null if nothing changes. */
export function editView({ element: item, body, foot, message }, done) {
  const label = message.role === "user" ? "Send" : "Save";
  const field = element("textarea", { value: message.content, ariaLabel: "Edit the message" });
  const save = () => done(field.value.trim() || null);
  const form = element("form", { className: "edit", onsubmit: (event) => (event.preventDefault(), save()) }, field);
  const actions = [button("Cancel", () => done(null)), element("button", { className: "primary" }, label)];
  form.append(element("div", { className: "actions" }, ...actions));
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      done(null);
    }
    if (isEnter(event) && event.target === field && message.role === "user") {
      event.preventDefault();
      save();
    }
  });
  body.replaceWith(form);
  foot.remove();
  item.classList.add("editing");
  grow(field);
  field.addEventListener("input", () => grow(field));
  field.focus();
}

/** Whether a key press sends: Enter, but not as part of an input method or with Shift. */
export const isEnter = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

/** Gives a field the height of its text; the style sheet sets the largest height. */
export function grow(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}
