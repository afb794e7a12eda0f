// look.mjs FOLDER URL...: opens each page in headless Chromium at three sizes, checks it, and writes FOLDER/NAME-SIZE.png.
// Speaks the browser's debugging protocol through a pipe, so that nothing but node and chromium is needed.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";

const [folder, ...urls] = process.argv.slice(2);
const profile = mkdtempSync(join(tmpdir(), "look-"));
const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--hide-scrollbars", `--user-data-dir=${profile}`, "--remote-debugging-pipe", "about:blank"];
const browser = spawn("chromium", flags, { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });

let number = 0, rest = "", listeners = [];
const waiting = new Map();
browser.stdio[4].on("data", (chunk) => {
  const messages = (rest + chunk).split("\0");
  rest = messages.pop();
  for (const text of messages) {
    const message = JSON.parse(text);
    if (message.id) {
      const { resolve, reject } = waiting.get(message.id);
      message.error ? reject(new Error(message.error.message)) : resolve(message.result);
    } else {
      listeners.forEach((listener) => listener(message));
    }
  }
});
const send = (method, params = {}, sessionId) => new Promise((resolve, reject) => {
  waiting.set(++number, { resolve, reject });
  browser.stdio[3].write(JSON.stringify({ id: number, method, params, sessionId }) + "\0");
});

const sizes = [
  ["desktop", 1280, 900, false, "light"],
  ["phone", 390, 844, true, "light"],
  ["dark", 1280, 900, false, "dark"],
  ["phone-dark", 390, 844, true, "dark"],
];
let failed = false;
for (const url of urls) {
  const name = basename(new URL(url).pathname).replace(/\..*/, "");
  for (const [size, width, height, mobile, scheme] of sizes) {
    const { targetId } = await send("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await send("Target.attachToTarget", { targetId, flatten: true });
    const call = (method, params) => send(method, params, sessionId);
    const requested = [], errors = [];
    let loaded;
    const done = new Promise((resolve) => { loaded = resolve; });
    listeners = [(message) => {
      if (message.sessionId !== sessionId) return;
      if (message.method === "Page.loadEventFired") loaded();
      if (message.method === "Network.requestWillBeSent") requested.push(message.params.request.url);
      if (message.method === "Log.entryAdded" && message.params.entry.level === "error") errors.push(message.params.entry.text);
    }];
    for (const domain of ["Page", "Network", "Log", "Runtime"]) await call(`${domain}.enable`);
    await call("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: mobile ? 2 : 1, mobile });
    await call("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
    await call("Page.navigate", { url });
    await done;
    const { result } = await call("Runtime.evaluate", { returnByValue: true, expression: `({
      wide: document.documentElement.scrollWidth - innerWidth,
      pictures: document.images.length,
      missing: [...document.images].filter((image) => !image.naturalWidth).length,
      small: [...document.querySelectorAll("p, td, dd, figcaption")].filter((e) => e.innerText && parseFloat(getComputedStyle(e).fontSize) < 10).length,
      height: document.documentElement.scrollHeight,
      title: document.title })` });
    const seen = result.value;
    const elsewhere = requested.filter((asked) => asked !== url && !asked.startsWith("data:") && !asked.endsWith("/favicon.ico"));
    const wrong = [];
    if (seen.wide > 0) wrong.push(`${seen.wide} pixels wider than the screen`);
    if (seen.missing) wrong.push(`${seen.missing} pictures missing`);
    if (seen.small) wrong.push(`${seen.small} texts below 10 pixels`);
    if (!seen.pictures) wrong.push("no picture");
    if (elsewhere.length) wrong.push(`loads ${elsewhere}`);
    const serious = errors.filter((text) => !text.includes("404"));
    if (serious.length) wrong.push(`errors: ${serious}`);
    const { data } = await call("Page.captureScreenshot", { captureBeyondViewport: true,
      clip: { x: 0, y: 0, width, height: Math.min(seen.height, 6000), scale: 1 } });
    writeFileSync(join(folder, `${name}-${size}.png`), Buffer.from(data, "base64"));
    console.log(`${name} ${size}: ${seen.title}, ${seen.pictures} pictures, ${wrong.join("; ") || "good"}`);
    failed ||= wrong.length > 0;
    await send("Target.closeTarget", { targetId });
  }
}
const ended = new Promise((resolve) => browser.once("exit", resolve));
await send("Browser.close").catch(() => {});
await ended;
rmSync(profile, { recursive: true, force: true });
process.exit(failed ? 1 : 0);
