// The list of conversations beside the chat.

import { button, byId, element } from "./dom.js";
import * as store from "./store.js";

/** Draws the list; `actions` has `open`, `rename` and `remove`. */
export function drawList(current, actions) {
  const items = store.conversations().map((one) => listItem(one, one.id === current.id, actions));
  byId("conversations").replaceChildren(...items);
}

function listItem(one, isCurrent, actions) {
  const title = store.titleOf(one);
  const open = button(title, () => actions.open(one.id), { className: "open", title });
  if (isCurrent) open.setAttribute("aria-current", "true");
  const item = element("li", {}, open);
  item.append(
    button("Rename", () => renameIn(item, one, actions), { ariaLabel: `Rename ${title}` }),
    button("Delete", () => actions.remove(one), { ariaLabel: `Delete ${title}` }),
  );
  return item;
}

function renameIn(item, one, actions) {
  const field = element("input", { value: store.titleOf(one), ariaLabel: "Title" });
  let isDone = false;
  const finish = (title) => {
    if (isDone) return;
    isDone = true;
    actions.rename(one, title);
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      finish(null);
    }
    if (event.key === "Enter") finish(field.value);
  });
  field.addEventListener("blur", () => finish(field.value));
  item.replaceChildren(field);
  field.select();
}

/** Asks before a conversation is deleted; resolves to whether it was confirmed. */
export function confirmDeletion(title) {
  const dialog = byId("confirm");
  byId("confirm-text").textContent = `Delete “${title}”?`;
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "delete"), { once: true });
  });
}
