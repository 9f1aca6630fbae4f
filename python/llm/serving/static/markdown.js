// Renders Markdown as DOM nodes. Text of a model only becomes text nodes, and links only after their scheme is checked.

import { copyButton, element } from "./dom.js";

const MAX_DEPTH = 8;
const FENCE = /^ {0,3}(`{3,}|~{3,}) *([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6}) +(.*)$/;
const RULE = /^ {0,3}(?:(?:\* *){3,}|(?:- *){3,}|(?:_ *){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +)(?=\S)/;
const EMPTY = /^\s*$/;

/** Splits a text into blocks, each with its source, so that a growing text redraws only what changed. */
export function blocksOf(text) {
  const lines = text.replaceAll("\r\n", "\n").split("\n");
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    const start = at;
    const [block, end] = readBlock(lines, at);
    at = end;
    if (block) blocks.push({ ...block, source: lines.slice(start, end).join("\n") });
  }
  return blocks;
}

/** Replaces the children of `parent` by a rendered text; blocks whose source is unchanged keep their nodes. */
export function renderInto(parent, text) {
  const blocks = blocksOf(text);
  const old = parent.renderedBlocks ?? [];
  let same = 0;
  while (same < blocks.length && same < old.length && blocks[same].source === old[same].source) same++;
  while (parent.childNodes.length > same) parent.lastChild.remove();
  for (const block of blocks.slice(same)) parent.append(render(block, 0));
  parent.renderedBlocks = blocks;
}

function readBlock(lines, at) {
  const line = lines[at];
  if (EMPTY.test(line)) return [null, at + 1];
  const heading = HEADING.exec(line);
  if (heading) return [{ kind: "heading", level: heading[1].length, text: heading[2].replace(/ #+ *$/, "") }, at + 1];
  const fence = FENCE.exec(line);
  if (fence) return readFence(lines, at, fence);
  if (RULE.test(line)) return [{ kind: "rule" }, at + 1];
  if (QUOTE.test(line)) return readQuote(lines, at);
  if (ITEM.test(line)) return readList(lines, at);
  if (isTable(lines, at)) return readTable(lines, at);
  return readParagraph(lines, at);
}

function readFence(lines, at, [, fence, language]) {
  const isEnd = (line) => {
    const trimmed = line.trim();
    return trimmed.length >= fence.length && trimmed === fence[0].repeat(trimmed.length);
  };
  let end = at + 1;
  while (end < lines.length && !isEnd(lines[end])) end++;
  return [{ kind: "code", language, text: lines.slice(at + 1, end).join("\n") }, Math.min(end + 1, lines.length)];
}

function readQuote(lines, at) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  return [{ kind: "quote", text: lines.slice(at, end).map((line) => line.replace(QUOTE, "")).join("\n") }, end];
}

function readList(lines, at) {
  const [, indent, marker] = ITEM.exec(lines[at]);
  const items = [];
  let width = 0;
  let end = at;
  for (; end < lines.length; end++) {
    const line = lines[end];
    const item = ITEM.exec(line);
    const isNested = items.length > 0 && line.search(/\S/) >= width;
    if (item && !isNested && item[1].length <= indent.length + 1 && sameKind(item[2], marker)) {
      width = item[0].length;
      items.push([line.slice(width)]);
    } else if (EMPTY.test(line)) {
      const next = lines[end + 1] ?? "";
      if (EMPTY.test(next) || (next.search(/\S/) < width && !ITEM.test(next))) break;
      items.at(-1).push("");
    } else if (isNested) items.at(-1).push(line.slice(width));
    else if (startsBlock(line)) break;
    else items.at(-1).push(line.trimStart());
  }
  const start = parseInt(marker, 10);
  return [{ kind: "list", start: Number.isNaN(start) ? null : start, items: items.map((item) => item.join("\n")) }, end];
}

const sameKind = (one, other) => /\d/.test(one) === /\d/.test(other);

function startsBlock(line) {
  return FENCE.test(line) || HEADING.test(line) || QUOTE.test(line) || ITEM.test(line) || RULE.test(line);
}

function cellsOf(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
}

function isTable(lines, at) {
  const under = lines[at + 1] ?? "";
  if (!lines[at].includes("|") || !under.includes("-")) return false;
  const marks = cellsOf(under);
  return marks.length === cellsOf(lines[at]).length && marks.every((mark) => /^:?-+:?$/.test(mark));
}

function readTable(lines, at) {
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && !EMPTY.test(lines[end])) end++;
  return [{ kind: "table", head: cellsOf(lines[at]), rows: lines.slice(at + 2, end).map(cellsOf) }, end];
}

function readParagraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !EMPTY.test(lines[end]) && !startsBlock(lines[end]) && !isTable(lines, end)) end++;
  return [{ kind: "paragraph", text: lines.slice(at, end).map((line) => line.trimStart()).join("\n") }, end];
}

function render(block, depth) {
  switch (block.kind) {
    case "heading":
      return element(`h${Math.min(block.level + 1, 6)}`, {}, ...inline(block.text));
    case "code":
      return codeBlock(block.text, block.language);
    case "rule":
      return element("hr");
    case "quote":
      return element("blockquote", {}, ...nested(block.text, depth));
    case "list":
      return renderList(block, depth);
    case "table":
      return renderTable(block);
    default:
      return element("p", {}, ...inline(block.text));
  }
}

function nested(text, depth) {
  return depth < MAX_DEPTH ? blocksOf(text).map((block) => render(block, depth + 1)) : [text];
}

function renderList({ start, items }, depth) {
  const rendered = items.map((item) => {
    const children = nested(item, depth);
    const isTight = children[0]?.tagName === "P" && !item.includes("\n\n");
    return element("li", {}, ...(isTight ? [...children[0].childNodes, ...children.slice(1)] : children));
  });
  return start === null ? element("ul", {}, ...rendered) : element("ol", { start }, ...rendered);
}

function renderTable({ head, rows }) {
  const row = (cells, tag) => element("tr", {}, ...head.map((_, idx) => element(tag, {}, ...inline(cells[idx] ?? ""))));
  const body = element("tbody", {}, ...rows.map((cells) => row(cells, "td")));
  return element("div", { className: "table" }, element("table", {}, element("thead", {}, row(head, "th")), body));
}

/** Returns a block of code with its language and a button that copies it. */
export function codeBlock(text, language = "") {
  const bar = element("div", { className: "bar" }, element("span", {}, language), copyButton(() => text));
  const code = element("pre", { tabIndex: 0 }, element("code", {}, text));
  return element("div", { className: "code" }, bar, code);
}

const TOKEN = /\\[!-/:-@[-`{-~]|`+|\*\*|__|~~|\*|_|!?\[|<?https?:\/\/[^\s<>]+>?|\n/g;
const MARKS = { "**": "strong", __: "strong", "*": "em", _: "em", "~~": "del" };

/** Renders what stands inside a block. */
function inline(text, depth = 0) {
  const nodes = [];
  // `unclosed` and `middle` keep what was searched before: searching again would make long texts slow.
  const state = { text, depth, mask: masked(text), unclosed: new Set(), middle: -1 };
  const token = new RegExp(TOKEN);
  let plain = 0;
  for (let found = token.exec(text); found; found = token.exec(text)) {
    const made = depth < MAX_DEPTH ? readInline(state, found) : null;
    if (!made) continue;
    nodes.push(text.slice(plain, found.index), ...made.nodes);
    plain = token.lastIndex = made.end;
  }
  nodes.push(text.slice(plain));
  return nodes.filter((node) => node !== "");
}

function readInline(state, { 0: token, index }) {
  const after = index + token.length;
  if (token === "\n") return { nodes: [element("br")], end: after };
  if (token[0] === "\\") return { nodes: [token[1]], end: after };
  if (token[0] === "`") return readCode(state.text, token, after, state.unclosed);
  if (token.endsWith("[")) return readLink(state, after);
  if (token in MARKS) return readMarked(state, token, index);
  return readAddress(token, index);
}

function readCode(text, ticks, after, unclosed) {
  const end = endOfCode(text, ticks, after, unclosed);
  if (end < 0) return { nodes: [ticks], end: after };
  const code = text.slice(after, end).replaceAll("\n", " ").replace(/^ (.+) $/, "$1");
  return { nodes: [element("code", {}, code)], end: end + ticks.length };
}

function endOfCode(text, ticks, from, unclosed) {
  if (unclosed.has(ticks)) return -1;
  for (let at = text.indexOf(ticks, from); at >= 0; ) {
    let end = at + ticks.length;
    if (text[end] !== "`") return at;
    while (text[end] === "`") end++;
    at = text.indexOf(ticks, end);
  }
  unclosed.add(ticks);
  return -1;
}

/** Returns a text of the same length without code and escaped characters, in which marks can be searched. */
function masked(text) {
  const unclosed = new Set();
  const pattern = /\\[!-/:-@[-`{-~]|`+/g;
  let mask = "";
  let at = 0;
  for (let found = pattern.exec(text); found; found = pattern.exec(text)) {
    let end = pattern.lastIndex;
    if (found[0][0] === "`") {
      const close = endOfCode(text, found[0], end, unclosed);
      if (close >= 0) end = close + found[0].length;
    }
    mask += text.slice(at, found.index) + "\0".repeat(end - found.index);
    at = pattern.lastIndex = end;
  }
  return mask + text.slice(at);
}

function readMarked({ text, mask, unclosed, depth }, mark, index) {
  const start = index + mark.length;
  const isInsideWord = mark[0] === "_" && /\w/.test(text[index - 1] ?? "");
  if (unclosed.has(mark) || isInsideWord || /^\s?$/.test(text[start] ?? "")) return null;
  for (let at = mask.indexOf(mark, start + 1); at >= 0; at = mask.indexOf(mark, at + 1)) {
    const next = mask[at + mark.length] ?? "";
    const isLonger = mark.length === 1 && (next === mark || mask[at - 1] === mark);
    const isInside = mark[0] === "_" && /\w/.test(next);
    if (isLonger || isInside || /\s/.test(mask[at - 1])) continue;
    if (mark.length === 2) while (mask[at + 2] === mark[0]) at++; // ***both*** ends with the outer mark
    const inner = inline(text.slice(start, at), depth + 1);
    return { nodes: [element(MARKS[mark], {}, ...inner)], end: at + mark.length };
  }
  unclosed.add(mark);
  return null;
}

function readLink(state, after) {
  const { text, mask, unclosed, depth } = state;
  if (unclosed.has("](")) return null;
  if (state.middle < after) state.middle = mask.indexOf("](", after);
  const middle = state.middle;
  if (middle < 0) unclosed.add("](");
  if (middle < 0 || mask.lastIndexOf("[", middle) >= after) return null;
  const end = endOfTarget(mask, middle + 2);
  const href = end < 0 ? null : safeAddress(text.slice(middle + 2, end).trim().split(/\s/)[0]);
  if (!href) return null;
  const label = inline(text.slice(after, middle), depth + 1);
  return { nodes: [link(href, label.length ? label : [href])], end: end + 1 };
}

function endOfTarget(mask, from) {
  let open = 0;
  for (let at = from; at < mask.length && mask[at] !== "\n"; at++) {
    if (mask[at] === "(") open++;
    if (mask[at] === ")" && open-- === 0) return at;
  }
  return -1;
}

function readAddress(token, index) {
  const isBracketed = token[0] === "<" && token.endsWith(">");
  const shown = isBracketed ? token.slice(1, -1) : token.replace(/^<|>$|[.,;:!?'"*_)\]]+$/g, "");
  const href = safeAddress(shown);
  if (!href || (token[0] === "<" && !isBracketed)) return null;
  return { nodes: [link(href, [shown])], end: index + (isBracketed ? token.length : shown.length) };
}

/** Returns an absolute address that a link may have, or null: no scheme that runs code. */
function safeAddress(text) {
  const url = URL.parse ? URL.parse(text) : parsed(text);
  return url && ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
}

function parsed(text) {
  try {
    return new URL(text);
  } catch {
    return null;
  }
}

function link(href, label) {
  return element("a", { href, target: "_blank", rel: "noopener noreferrer" }, ...label);
}
