// The Markdown that models write, as DOM nodes. Text from the model becomes text nodes and nothing
// else; the only attribute that it reaches is the address of a link, which is http or https.

const MARK = /^\s*(`{3,}|~{3,})/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+|$)/;
const DELIMITER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const INLINE = new RegExp(
  [
    /\\([\\`*_~#|])/, // 1 escaped character
    /(?<!`)(`{1,3})(?!`)([^]{0,500}?[^`])\2(?!`)/, // 3 code
    /\*\*(?=\S)([^]{0,500}?[^\s*]\*?)\*\*/, // 4 bold
    /(?<!\w)__(?=\S)([^]{0,500}?[^\s_])__(?!\w)/, // 5 bold
    /\*(?=[^\s*])([^*]{0,500}?[^\s*])\*/, // 6 italics
    /(?<!\w)_(?=[^\s_])([^_]{0,500}?[^\s_])_(?!\w)/, // 7 italics
    /~~(?=\S)([^~]{1,1000})~~/, // 8 struck out
    /!?\[([^\]\n]{0,500})\]\(\s*<?([^\s()<>]{1,1000}(?:\([^\s()<>]{0,100}\)[^\s()<>]{0,100})?)>?(?:\s+"[^"\n]{0,300}")?\s*\)/, // 9, 10 link
    /(https?:\/\/[^\s<>"`*]{1,1000}[^\s<>"`*.,;:!?)\]])/, // 11 bare address
  ].map((part) => part.source).join("|"),
  "g",
);
const LONGEST = 10_000; // characters; longer paragraphs are shown as they are
const DEEPEST = 8; // lists and quotes inside each other

/** A new element with these properties and children; strings become text nodes. */
export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** Shows `text` in `parent`; blocks that have not changed since the last call keep their nodes. */
export function render(parent, text) {
  const parts = split(text.replace(/\r\n?/g, "\n").split("\n"));
  const sources = parts.map((part) => part.lines.join("\n"));
  parts.forEach((part, i) => {
    if (parent.sources?.[i] === sources[i]) return;
    const node = build(part, 0);
    if (parent.children[i]) parent.children[i].replaceWith(node);
    else parent.append(node);
  });
  while (parent.children.length > parts.length) parent.lastChild.remove();
  parent.sources = sources;
}

/** Groups lines into blocks: [{kind, lines, level}]. An open code block reaches to the end. */
function split(lines) {
  const parts = [];
  let part = null;
  let fence = "";
  let level = 2; // of the last heading; a message's own is 2, and levels are not skipped
  for (const line of lines) {
    const mark = line.match(MARK)?.[1] ?? "";
    if (fence) {
      part.lines.push(line);
      if (mark.startsWith(fence) && line.trim() === mark) fence = "";
      continue;
    }
    const kind = kindOf(line);
    const last = part?.lines.at(-1);
    const inside = part?.kind === "list" && kind !== "list" &&
      (kind === "blank" || /^(\s{2,}|\t)/.test(line) || (kind === "text" && last.trim()));
    const joins = inside || (part?.kind === kind && ["text", "list", "quote"].includes(kind));
    if (!joins) {
      part = kind === "blank" ? null : { kind, lines: [] };
      if (part) parts.push(part);
      if (kind === "heading") part.level = level = Math.min(line.trim().search(/[^#]/) + 2, level + 1, 6);
    }
    part?.lines.push(line);
    fence = mark;
  }
  return parts;
}

function kindOf(line) {
  if (!line.trim()) return "blank";
  if (MARK.test(line)) return "code";
  if (/^\s{0,3}#{1,6}\s+\S/.test(line)) return "heading";
  if (/^\s{0,3}([-*_])(\s*\1){2,}\s*$/.test(line)) return "rule";
  if (/^\s{0,3}>/.test(line)) return "quote";
  return ITEM.test(line) ? "list" : "text";
}

function build({ kind, lines, level }, depth) {
  const nested = (tag, rows) => element(tag, {}, ...split(rows).map((part) => build(part, depth + 1)));
  if (depth > DEEPEST) return element("p", { dir: "auto" }, lines.join("\n"));
  if (kind === "code") return code(lines);
  if (kind === "rule") return element("hr");
  if (kind === "quote") return nested("blockquote", lines.map((line) => line.replace(/^\s*> ?/, "")));
  if (kind === "list") return list(lines, nested);
  if (kind === "heading") {
    const words = lines[0].replace(/^\s*#+\s+|\s+#+\s*$/g, "");
    return inline(element(depth ? "p" : `h${level}`, { dir: "auto", className: "heading" }), words);
  }
  if (lines.length > 1 && lines[0].includes("|") && DELIMITER.test(lines[1])) return table(lines);
  return inline(element("p", { dir: "auto" }), lines.join("\n").trimStart());
}

function code(lines) {
  const [first, ...rest] = lines;
  const closed = rest.length && MARK.test(rest.at(-1)) && rest.at(-1).trim() === first.match(MARK)[1];
  const indent = first.search(/\S/);
  const body = rest.slice(0, closed ? -1 : undefined).map((line) => line.replace(RegExp(`^\\s{0,${indent}}`), ""));
  const language = first.trim().replace(/^[`~]+\s*/, "").slice(0, 40);
  const bar = element("div", { className: "bar" }, element("span", {}, language), element("button", { className: "copy", type: "button" }, "Copy"));
  const pre = element("pre", { tabIndex: 0, role: "group", ariaLabel: `Code ${language}`.trim() }, element("code", {}, body.join("\n")));
  return element("div", { className: "code", dir: "ltr" }, bar, pre);
}

function list(lines, nested) {
  const [, indent, mark] = lines[0].match(ITEM);
  const items = [];
  for (const line of lines) {
    const match = line.match(ITEM);
    if (match && match[1].length < indent.length + 2) items.push([line.slice(match[0].length)]);
    else items.at(-1).push(line);
  }
  const shallow = (rows) => Math.min(...rows.filter((row) => row.trim()).map((row) => row.search(/\S/)));
  const rows = items.map(([head, ...tail]) => {
    const cut = shallow(tail);
    return [head, ...tail.map((row) => row.slice(Math.min(cut, row.length)))];
  });
  const ordered = /\d/.test(mark);
  const node = element(ordered ? "ol" : "ul", {}, ...rows.map((item) => nested("li", item)));
  if (ordered) node.start = Number.parseInt(mark);
  return node;
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).slice(0, 50);
  const row = (tag) => (line) => element("tr", {}, ...cells(line).map((cell) => inline(element(tag, { dir: "auto" }), cell.trim())));
  const head = element("thead", {}, row("th")(lines[0]));
  const body = element("tbody", {}, ...lines.slice(2).map(row("td")));
  return element("div", { className: "wide", tabIndex: 0, role: "group", ariaLabel: "Table" }, element("table", {}, head, body));
}

/** Appends `text` to `parent` with code, emphasis and links as elements. */
function inline(parent, text, depth = 0) {
  if (text.length > LONGEST || depth > DEEPEST) return parent.append(text), parent;
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    const [whole, escaped, , code, bold, bold2, italic, italic2, struck, words, address, bare] = match;
    parent.append(text.slice(end, match.index));
    end = match.index + whole.length;
    const within = (tag, inner) => inline(element(tag), inner, depth + 1);
    if (escaped) parent.append(escaped);
    else if (code) parent.append(element("code", {}, code.length > 2 ? code.replace(/^ (.*) $/s, "$1") : code));
    else if (bold ?? bold2) parent.append(within("strong", bold ?? bold2));
    else if (italic ?? italic2) parent.append(within("em", italic ?? italic2));
    else if (struck) parent.append(within("s", struck));
    else parent.append(link(whole, words ?? bare, address ?? bare));
  }
  parent.append(text.slice(end));
  return parent;
}

/** A link to another site, with its host shown where the words do not say it; else plain text. */
function link(whole, words, address) {
  const url = URL.canParse(address) && /^https?:/i.test(address) ? new URL(address) : null;
  if (!url) return whole;
  const node = element("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" });
  node.append(element("bdi", {}, words.trim() || address));
  if (words !== address) node.append(" ", element("bdi", { className: "host" }, `(${url.host})`));
  return node;
}
