// What passes between the page and its server. The API key is kept in a variable of this file and
// goes nowhere but into the Authorization header.

const lock = document.getElementById("lock"); // the dialog that asks for the key
const field = document.getElementById("key");
let secret = "";

export class Refused extends Error {
  constructor(message, wait = 0) {
    super(message);
    this.wait = wait; // seconds after which to try again
  }
}

/** GETs `path`, or POSTs `body` to it; asks for a key as often as the server does. */
export async function request(path, body, signal) {
  for (let tries = 0; ; tries++) {
    const headers = { "Content-Type": "application/json", ...(secret && { Authorization: `Bearer ${secret}` }) };
    const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
    if (response.ok) return response;
    if (response.status !== 401) throw await refusal(response);
    if (!(await unlock(tries || secret))) throw new Refused("This server needs an API key.");
  }
}

async function refusal(response) {
  const text = await response.text();
  let said = text.slice(0, 300);
  try {
    said = JSON.parse(text).error.message ?? said;
  } catch { /* not the server's own answer */ }
  const after = response.headers.get("Retry-After") ?? "";
  const seconds = /^\d+$/.test(after) ? Number(after) : Math.ceil((Date.parse(after) - Date.now()) / 1000);
  const wait = Math.max(0, seconds || 0);
  const when = wait ? ` Try again in ${wait} ${wait === 1 ? "second" : "seconds"}.` : "";
  const what = { 429: "The server is busy.", 503: "The server is not ready." }[response.status];
  return new Refused(`${what ?? `The server refused (${response.status}).`} ${said}${when}`, wait);
}

/** The JSON values of a stream of server-sent events, up to `[DONE]`. */
export async function* events(response) {
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  let buffer = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (buffer + decoder.decode(value, { stream: true })).split(/\r?\n/);
      buffer = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
        if (line || !data.length) continue;
        const event = data.join("\n");
        data = [];
        if (event === "[DONE]") return;
        yield JSON.parse(event);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // fails where the stream did, which has been reported
  }
}

/** Asks for a key; false if the user would rather not. */
export function unlock(rejected) {
  document.getElementById("lock-text").textContent = rejected ? "The server did not accept this key." : "This server needs a key.";
  field.value = "";
  if (!lock.open) lock.showModal();
  return new Promise((resolve) => {
    lock.onclose = () => {
      const used = lock.returnValue === "use";
      if (used) secret = field.value;
      field.value = lock.returnValue = "";
      resolve(used);
    };
  });
}

/** One line about an error of `request` or `events`. */
export const explain = (error) =>
  error instanceof Refused ? error.message : error instanceof TypeError ? "No connection to the server." : String(error);
