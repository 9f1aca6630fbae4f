// Runs before the page is drawn, so that a chosen theme never flashes in the other colours.
"use strict";
try {
  const theme = localStorage.getItem("llm-oxide.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Without storage, the page follows the system's theme.
}
