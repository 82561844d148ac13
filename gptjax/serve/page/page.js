// The chat. Its state is one object, `chat`, drawn by `draw`; answers arrive through `answer`. The
// conversation outlives a reload, and ends with its tab (sessionStorage).
import { element, render } from "./markdown.js";
import { Refused, events, explain, request, unlock } from "./server.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = [...$("numbers").elements].filter((input) => input.name);

let chat = { messages: [], model: "", system: "", settings: {}, theme: "" };
let previous = null; // the messages before `New chat`
let running = null; // AbortController of the answer that is being written
let editing = false;
let countdown = 0;
const cards = new WeakMap(); // message → its element

// Answers -----------------------------------------------------------------------------------------

/** What is sent: the system prompt, and messages of one role in a row as one. */
function prompt() {
  const messages = chat.system.trim() ? [{ role: "system", content: chat.system }] : [];
  for (const { role, content } of chat.messages) {
    if (role === messages.at(-1)?.role) messages.at(-1).content += `\n\n${content}`;
    else messages.push({ role, content });
  }
  return messages;
}

/** Has the model answer the messages so far, and shows the answer as it comes. */
async function answer() {
  const body = { model: chat.model, messages: prompt(), stream: true, stream_options: { include_usage: true }, ...chat.settings };
  const message = { role: "assistant", content: "", note: "" };
  const control = new AbortController();
  chat.messages.push(message);
  running = control;
  notify("");
  draw();
  scrollDown();
  const show = painter(message);
  const start = performance.now();
  let first = 0;
  let last = 0;
  let usage = null;
  let reason = null;
  const clock = setInterval(() => first || show.wait(Math.round((performance.now() - start) / 1000)), 1000);
  try {
    const response = await request("v1/chat/completions", body, control.signal);
    for await (const event of events(response)) {
      if (event.error) throw new Refused(`The answer broke off: ${event.error.message ?? event.error}`);
      usage = event.usage ?? usage;
      reason = event.choices?.[0]?.finish_reason ?? reason;
      const text = event.choices?.[0]?.delta?.content;
      if (!text) continue;
      last = performance.now();
      first ||= last;
      message.content += text;
      show.paint();
    }
    if (!reason) throw new Refused("The answer broke off: the connection ended early.");
    message.note = summary(usage, reason, (first - start) / 1000, (last - first) / 1000);
  } catch (error) {
    message.note = error.name === "AbortError" ? "stopped" : "broke off";
    if (!message.content) chat.messages = chat.messages.filter((one) => one !== message);
    if (error.name !== "AbortError") notify(explain(error), error.wait);
  } finally {
    clearInterval(clock);
    if (running === control) running = null;
    show.end();
    draw();
  }
}

function summary(usage, reason, first, writing) {
  const parts = [];
  if (usage) {
    const written = usage.completion_tokens;
    const cached = usage.prompt_tokens_details?.cached_tokens;
    parts.push(`${written} tokens`);
    if (written > 1 && writing > 0) parts.push(`${((written - 1) / writing).toFixed(1)} tokens/s`);
    if (first > 0) parts.push(`first after ${first.toFixed(2)} s`);
    parts.push(`prompt ${usage.prompt_tokens}${cached ? `, ${cached} cached` : ""}`);
  }
  if (reason === "length") parts.push("cut at the limit");
  return parts.join(" · ");
}

/** Shows a growing answer once a frame, and says each block to screen readers when it is whole. */
function painter(message) {
  const [, body, tools] = cards.get(message).children;
  let frame = 0;
  let said = 0;
  const say = (end) => {
    for (; said < end; said++) {
      const block = body.children[said];
      announce(block.className === "code" ? "Code." : block.textContent);
    }
  };
  const paint = () => {
    frame = 0;
    const low = atEnd();
    render(body, message.content);
    say(body.children.length - 1);
    if (low) scrollDown();
  };
  return {
    paint: () => { frame ||= requestAnimationFrame(paint); },
    wait: (seconds) => { tools.lastChild.textContent = `waiting for ${seconds} s`; },
    end: () => { cancelAnimationFrame(frame); paint(); say(body.children.length); },
  };
}

// Drawing -----------------------------------------------------------------------------------------

function draw() {
  const low = atEnd();
  const list = $("messages");
  chat.messages.map(card).forEach((node, i) => {
    if (!list.children[i]) list.append(node);
    else if (list.children[i] !== node) list.children[i].replaceWith(node);
  });
  while (list.children.length > chat.messages.length) list.lastChild.remove();
  $("empty").hidden = chat.messages.length > 0;
  $("restore").hidden = !previous;
  $("name").textContent = chat.model || "gptjax";
  $("send").hidden = !!running;
  $("stop").hidden = !running;
  $("editing").hidden = !editing;
  document.documentElement.dataset.theme = chat.theme;
  if (low) scrollDown();
  save();
}

/** The element of a message. It is kept, so that selections and focus outlive a drawing. */
function card(message, index) {
  const mine = message.role === "user";
  const end = index === chat.messages.length - 1;
  const writing = running && end;
  const last = index === lastOf(message.role);
  if (!cards.has(message)) {
    const heading = element("h2", { className: "unseen" }, mine ? "You" : "Answer");
    const body = element("div", { className: "body", dir: "auto" }, mine ? message.content : "");
    cards.set(message, element("article", {}, heading, body, element("div", { className: "tools" })));
  }
  const node = cards.get(message);
  const [, body, tools] = node.children;
  if (!mine) render(body, message.content);
  tools.replaceChildren();
  const tool = (words, action) => tools.append(element("button", { type: "button", onclick: action }, words));
  if (!writing) tool("Copy", ({ target }) => copy(message.content, target));
  if (!running && last && mine) tool("Edit", edit);
  if (!running && end) tool(mine ? "Answer" : "Regenerate", regenerate);
  tools.append(element("span", { className: "note" }, message.note ?? ""));
  const states = { last, writing, replaced: editing && index >= lastOf("user") };
  node.className = [message.role, ...Object.keys(states).filter((state) => states[state])].join(" ");
  node.ariaBusy = String(!!writing);
  return node;
}

const lastOf = (role) => chat.messages.findLastIndex((message) => message.role === role);
const atEnd = () => $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 80;
const scrollDown = () => { $("log").scrollTop = $("log").scrollHeight; };

/** Says `text` to screen readers. */
function announce(text) {
  const line = element("p", {}, text);
  $("spoken").append(line);
  setTimeout(() => line.remove(), 10_000);
}

/** Shows what went wrong, with a button that may be pressed after `wait` seconds. */
function notify(text, wait = 0) {
  const low = atEnd();
  clearInterval(countdown);
  $("notice").hidden = !text;
  $("alert").textContent = text;
  $("retry").hidden = chat.messages.at(-1)?.role !== "user" && chat.model !== "";
  const until = Date.now() + wait * 1000;
  const tick = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    $("retry").disabled = left > 0;
    $("retry").textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left <= 0) clearInterval(countdown);
  };
  countdown = setInterval(tick, 250);
  tick();
  if (low) scrollDown();
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // refused, or not there: plain http from another machine
    const area = element("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = "Copied";
  announce("Copied");
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

// Conversation ------------------------------------------------------------------------------------

function send() {
  const text = $("text").value;
  if (!text.trim() || running) return;
  if (editing) chat.messages.splice(lastOf("user"));
  compose();
  chat.messages.push({ role: "user", content: text });
  answer();
}

/** Puts `text` into the box; what is sent then replaces the last message if `instead`. */
function compose(text = "", instead = false) {
  editing = instead;
  $("text").value = text;
  grow();
  $("text").focus();
  draw();
}

/** Makes the box as high as its lines, in browsers without `field-sizing`. */
const grow = () => { $("text").rows = Math.min($("text").value.split("\n").length, 10); };

function edit() {
  if (lastOf("user") >= 0 && !running) compose(chat.messages[lastOf("user")].content, true);
}

function regenerate() {
  if (running || lastOf("user") < 0) return;
  chat.messages.splice(lastOf("user") + 1);
  $("text").focus();
  answer();
}

function newChat() {
  running?.abort();
  if (chat.messages.length) previous = chat.messages;
  chat.messages = [];
  notify("");
  compose();
}

/** Takes over a chat from a file or an earlier page, of which nothing is trusted. */
function adopt(value) {
  const messages = Array.isArray(value) ? value : value?.messages;
  const known = ["system", "user", "assistant"];
  if (!Array.isArray(messages) || !messages.every((one) => known.includes(one?.role) && typeof one.content === "string"))
    throw new Error("This file is not a chat: it needs messages with a role and a text each.");
  const text = (one) => (typeof one === "string" ? one : "");
  const said = messages.filter(({ role, content }) => role !== "system" && content);
  chat.messages = said.map(({ role, content, note }) => ({ role, content, note: text(note) }));
  chat.system = messages.find(({ role }) => role === "system")?.content ?? text(value.system);
  chat.model = text(value.model) || chat.model;
  chat.theme = ["light", "dark"].includes(value.theme) ? value.theme : chat.theme;
  const usable = NUMBERS.filter(({ name }) => Number.isFinite(value.settings?.[name]));
  chat.settings = Object.fromEntries(usable.map(({ name }) => [name, value.settings[name]]));
  for (const input of NUMBERS) input.value = chat.settings[input.name] ?? "";
  $("system").value = chat.system;
  document.querySelector(`[name=theme][value="${chat.theme}"]`).checked = true;
  if ([...$("model").options].some(({ value: id }) => id === chat.model)) $("model").value = chat.model;
}

function save() {
  try {
    sessionStorage.setItem("chat", JSON.stringify(chat));
  } catch { /* full or switched off: the chat then ends with the page */ }
}

function exportChat() {
  const text = JSON.stringify({ model: chat.model, settings: chat.settings, messages: prompt() }, null, 2);
  const href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href, download: `chat-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}

async function importChat() {
  const [file] = $("file").files;
  $("file").value = "";
  if (!file) return;
  try {
    if (file.size > 10_000_000) throw new Error("This file is larger than 10 MB.");
    const before = chat.messages;
    adopt(JSON.parse(await file.text()));
    running?.abort();
    if (before.length) previous = before;
    notify("");
    compose();
  } catch (error) {
    notify(error instanceof SyntaxError ? "This file is not JSON." : error.message);
  }
  $("settings").close();
}

// Start -------------------------------------------------------------------------------------------

async function loadModels() {
  try {
    const { data } = await (await request("v1/models")).json();
    $("model").replaceChildren(...data.map(({ id }) => element("option", { value: id }, id)));
    $("model").disabled = data.length < 2;
    if (!data.some(({ id }) => id === chat.model)) chat.model = data[0]?.id ?? "";
    $("model").value = chat.model;
    document.title = `${chat.model} · gptjax`;
    draw();
  } catch (error) {
    notify(explain(error), error.wait);
  }
}

$("composer").onsubmit = (event) => { event.preventDefault(); send(); };
$("stop").onclick = () => { running?.abort(); $("text").focus(); };
$("new").onclick = newChat;
$("cancel").onclick = () => compose();
$("retry").onclick = async () => { notify(""); if (!chat.model) await loadModels(); if (chat.messages.at(-1)?.role === "user") regenerate(); };
$("restore").onclick = () => { chat.messages = previous; previous = null; draw(); $("text").focus(); };
$("open").onclick = () => $("settings").showModal();
$("export").onclick = exportChat;
$("import").onclick = () => $("file").click();
$("file").onchange = importChat;
$("change-key").onclick = async () => { if (await unlock(false)) { $("settings").close(); notify(""); loadModels(); } };
$("model").onchange = () => { chat.model = $("model").value; document.title = `${chat.model} · gptjax`; draw(); };
$("system").oninput = () => { chat.system = $("system").value; save(); };
$("themes").onchange = ({ target }) => { chat.theme = target.value; draw(); };
$("numbers").oninput = () => {
  const given = NUMBERS.filter((input) => !Number.isNaN(input.valueAsNumber));
  chat.settings = Object.fromEntries(given.map((input) => [input.name, input.valueAsNumber]));
  save();
};
$("messages").onclick = ({ target }) => {
  if (target.className === "copy") copy(target.closest(".code").querySelector("code").textContent, target);
};
$("text").oninput = grow;
$("text").onkeydown = (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); send(); }
  if (event.key === "ArrowUp" && !$("text").value) { event.preventDefault(); edit(); }
};
document.onkeydown = (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (running) running.abort();
  else if (editing) compose();
};

addEventListener("pagehide", save);
try {
  adopt(JSON.parse(sessionStorage.getItem("chat") ?? "[]"));
} catch { /* nothing usable was kept */ }
draw();
scrollDown();
$("text").focus();
loadModels();
