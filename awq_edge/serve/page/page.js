// The chat page: conversations in this browser, answers from /v1/chat/completions, the machine's
// state from /health. Text of models and users becomes text nodes only: nothing here reads HTML.
"use strict";

const STORE = "awq-edge.conversations", SETTINGS = "awq-edge.settings";
const HEALTH_MS = 5000;       // while the page is looked at; hidden pages ask nothing
const HOT_CELSIUS = 80;       // boards slow down from here on
const DRAW_MS = 80;           // an answer is drawn this often at most
// What the server takes of a picture; only what is above it is made smaller here.
const PICTURE_BYTES = 12 * 1024 * 1024, PICTURE_PIXELS = 50e6, PICTURE_SIDE = 16384, PICTURES = 32;
const KINDS = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"];
const THUMB_PIXELS = 176;
const $ = (id) => document.getElementById(id);

// ---- small pieces of DOM ------------------------------------------------------------------------

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function button(text, action, label = text, kind = "") {
  return element("button", { type: "button", class: kind, "aria-label": label, onclick: action }, text);
}

// ---- Markdown, as far as models write it ----------------------------------------------------------

const INLINE_LETTERS = 4000;  // a longer paragraph is plain text: matching takes the square of it
const INLINE = /(`{1,3})([^]*?[^`])\1(?!`)|\*\*(?=\S)([^]*?\S)\*\*|(?<![\w*])[*](?=\S)([^*]*?\S)[*](?!\w)|(?<!\w)_(?=\S)([^_]*?\S)_(?!\w)|~~(?=\S)([^]*?\S)~~|\[([^\]\n]*)\]\((https?:\/\/[^\s)]+)\)/;

function inline(text, depth = 0) {
  const made = document.createDocumentFragment();
  while (text) {
    const found = depth < 8 && text.length < INLINE_LETTERS ? INLINE.exec(text) : null;
    if (!found) break;
    made.append(text.slice(0, found.index));
    const [whole, , code, bold, star, low, gone, label, link] = found;
    if (code !== undefined) made.append(element("code", {}, code));
    else if (link !== undefined) {
      made.append(element("a", { href: link, rel: "noopener noreferrer nofollow", target: "_blank" },
        label || link));
    } else {
      const name = bold !== undefined ? "strong" : gone !== undefined ? "del" : "em";
      made.append(element(name, {}, inline(bold ?? star ?? low ?? gone, depth + 1)));
    }
    text = text.slice(found.index + whole.length);
  }
  made.append(text);
  return made;
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*(\S*)/, HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/, RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

function cells(line) {
  return line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").map((cell) => cell.trim());
}

function markdown(text, depth = 0) {
  const made = document.createDocumentFragment(), lines = text.split("\n");
  let at = 0;
  const special = (line, next) => FENCE.test(line) || HEADING.test(line) || RULE.test(line)
    || ITEM.test(line) || /^ {0,3}>/.test(line) || (line.includes("|") && DIVIDER.test(next ?? ""));
  while (at < lines.length) {
    const line = lines[at];
    let found;
    if (!line.trim()) {
      at++;
    } else if ((found = FENCE.exec(line))) {
      const end = new RegExp(`^ {0,3}${found[1][0]}{${found[1].length},}\\s*$`), body = [];
      for (at++; at < lines.length && !end.test(lines[at]); at++) body.push(lines[at]);
      at++;
      // Reachable by keyboard, for it may scroll.
      made.append(element("pre", { tabindex: "0" }, element("code", {}, body.join("\n"))));
    } else if ((found = HEADING.exec(line))) {
      made.append(element(`h${Math.min(found[1].length + 2, 5)}`, {}, inline(found[2])));
      at++;
    } else if (RULE.test(line)) {
      made.append(element("hr"));
      at++;
    } else if (/^ {0,3}>/.test(line) && depth < 6) {
      const body = [];
      for (; at < lines.length && /^ {0,3}>/.test(lines[at]); at++) {
        body.push(lines[at].replace(/^ {0,3}> ?/, ""));
      }
      made.append(element("blockquote", {}, markdown(body.join("\n"), depth + 1)));
    } else if (line.includes("|") && DIVIDER.test(lines[at + 1] ?? "")) {
      const head = element("tr", {}, ...cells(line).map((c) => element("th", { scope: "col" }, inline(c))));
      const body = element("tbody");
      for (at += 2; at < lines.length && lines[at].includes("|"); at++) {
        body.append(element("tr", {}, ...cells(lines[at]).map((c) => element("td", {}, inline(c)))));
      }
      made.append(element("table", { tabindex: "0" }, element("thead", {}, head), body));
    } else if ((found = ITEM.exec(line)) && depth < 6) {
      const ordered = /\d/.test(found[2]), indent = found[1].length;
      const list = element(ordered ? "ol" : "ul", ordered ? { start: String(parseInt(found[2], 10)) } : {});
      while (at < lines.length && (found = ITEM.exec(lines[at])) && found[1].length <= indent + 1
             && /\d/.test(found[2]) === ordered) {
        const body = [found[3]], width = found[1].length + found[2].length + 1;
        for (at++; at < lines.length; at++) {
          const next = lines[at], after = lines[at + 1] ?? "";
          const inside = /^\s+/.exec(next)?.[0].length > indent + 1;
          if (!next.trim() ? !/^\s{2,}\S/.test(after) : !inside) break;
          body.push(next.slice(Math.min(width, /^\s*/.exec(next)[0].length)));
        }
        list.append(element("li", {}, body.length > 1 ? markdown(body.join("\n"), depth + 1) : inline(body[0])));
        while (at < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1] ?? "")) at++;
      }
      made.append(list);
    } else {
      const body = [line];
      for (at++; at < lines.length && lines[at].trim() && !special(lines[at], lines[at + 1]); at++) {
        body.push(lines[at]);
      }
      made.append(element("p", {}, inline(body.join("\n"))));
    }
  }
  return made;
}

// ---- what is kept ---------------------------------------------------------------------------------

function read(key, otherwise) {
  try { return JSON.parse(localStorage.getItem(key)) ?? otherwise; } catch { return otherwise; }
}

function sound(list) {
  return (Array.isArray(list) ? list : []).filter((c) => c && typeof c.id === "string"
    && Array.isArray(c.messages) && c.messages.every((m) => m && typeof m.content === "string"
      && (m.role === "user" || m.role === "assistant") && soundPictures(m.pictures)));
}

function soundPictures(list) {
  return list === undefined || (Array.isArray(list) && list.every((p) => p && typeof p.id === "string"
    && typeof p.name === "string" && /^data:image\/(jpeg|png);base64,/.test(p.thumb)));
}

let conversations = sound(read(STORE, []));
let settings = read(SETTINGS, {});
let current = conversations[0] ?? fresh();
let waiting = [];             // pictures of the message that is being written
let attaching = Promise.resolve();
let running = null;           // the answer that is being written: {controller, conversation, message}

function fresh() {
  return { id: `${Date.now()}-${Math.random().toString(36).slice(2)}`, title: "", messages: [] };
}

function keep() {
  try {
    localStorage.setItem(STORE, JSON.stringify(conversations));
  } catch {
    notice("This browser has no room left for conversations: export and delete some.");
  }
}

function notice(text) { $("notice").textContent = text; }

// ---- pictures -------------------------------------------------------------------------------------

// Their files are too large for localStorage: a database of this browser's keeps them, where it can.
const blobs = new Map();

function database() {
  return new Promise((done) => {
    let asked;
    try { asked = indexedDB.open("awq-edge", 1); } catch { done(null); return; }
    asked.onupgradeneeded = () => asked.result.createObjectStore("pictures");
    asked.onsuccess = () => done(asked.result);
    asked.onerror = asked.onblocked = () => done(null);
  });
}

async function inStore(mode, act) {
  const opened = await database();
  if (!opened) return undefined;
  return new Promise((done) => {
    const change = opened.transaction("pictures", mode), asked = act(change.objectStore("pictures"));
    change.oncomplete = () => { opened.close(); done(asked.result); };
    change.onerror = change.onabort = () => { opened.close(); done(undefined); };
  });
}

async function blobOf(picture) {
  const found = blobs.get(picture.id) ?? await inStore("readonly", (store) => store.get(picture.id));
  if (!found) throw new Error(`${picture.name} is no longer kept in this browser: attach it again.`);
  blobs.set(picture.id, found);
  return found;
}

async function forgetPictures() {  // those that no conversation shows any more
  const known = new Set(sound(read(STORE, [])).flatMap((c) => c.messages.flatMap((m) => m.pictures ?? [])).map((p) => p.id));
  for (const id of await inStore("readonly", (store) => store.getAllKeys()) ?? []) {
    if (!known.has(id) && !blobs.has(id)) await inStore("readwrite", (store) => store.delete(id));
  }
}

function dataUrl(blob) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(blob);
  });
}

function drawn(image, scale) {
  const canvas = element("canvas");
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";  // what the server shows behind what is transparent
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas;
}

async function fitting(file, image) {
  let scale = Math.min(1, PICTURE_SIDE / Math.max(image.width, image.height),
    Math.sqrt(PICTURE_PIXELS / (image.width * image.height)));
  if (scale === 1 && file.size <= PICTURE_BYTES && KINDS.includes(file.type)) return file;
  for (;; scale *= 0.7) {
    const canvas = drawn(image, scale);
    const made = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
    if (made && made.size <= PICTURE_BYTES) return made;
  }
}

async function attach(files) {
  for (const file of files) {
    const name = file.name || "picture";
    if (waiting.length >= PICTURES) { notice(`A message holds ${PICTURES} pictures at most.`); return; }
    try {
      const image = await createImageBitmap(file);
      const blob = await fitting(file, image);
      const thumb = drawn(image, Math.min(1, THUMB_PIXELS / Math.min(image.width, image.height)))
        .toDataURL("image/jpeg", 0.8);
      image.close();
      const id = fresh().id;
      blobs.set(id, blob);
      waiting.push({ id, name, thumb });
      drawWaiting();
      $("announce").textContent = `${name} is attached.`;
    } catch {
      notice(`This browser cannot read ${name} as a picture.`);
    }
  }
}

function attachAll(files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/") || !file.type);
  if (!pictures.length) return false;
  if ($("attach").hidden) { notice("This model reads text alone, and no pictures."); return true; }
  notice("");
  attaching = attaching.then(() => attach(pictures));
  return true;
}

function thumbnail({ name, thumb }) { return element("img", { src: thumb, alt: name }); }

function drawWaiting() {
  $("pictures").replaceChildren(...waiting.map((picture) => element("li", {}, thumbnail(picture),
    button("✕", () => {
      waiting = waiting.filter((other) => other !== picture);
      blobs.delete(picture.id);
      drawWaiting();
      $("announce").textContent = `${picture.name} is removed.`;
      $("input").focus();
    }, `Remove ${picture.name}`))));
}

// ---- drawing --------------------------------------------------------------------------------------

function title(conversation) {
  const first = conversation.messages[0];
  return conversation.title || first?.content.slice(0, 60) || first?.pictures?.[0].name || "New conversation";
}

function drawList() {
  $("conversations").replaceChildren(...conversations.map((conversation) => {
    const name = title(conversation);
    const open = button(name, () => choose(conversation), name, "title");
    if (conversation === current) open.setAttribute("aria-current", "true");
    return element("li", {}, open,
      button("✎", () => rename(conversation), `Rename ${name}`, "tool"),
      button("⤓", () => exported(conversation), `Export ${name}`, "tool"),
      button("✕", () => remove(conversation), `Delete ${name}`, "tool"));
  }));
}

function drawMessage(message, index) {
  const mine = message.role === "user";
  const text = element("div", { class: "text" });
  const made = element("article", { class: message.role, "aria-label": mine ? "You" : "Model" },
    element("h2", {}, mine ? "You" : "Model"), text);
  if (message.pictures) text.before(element("div", { class: "shown" }, ...message.pictures.map(thumbnail)));
  if (mine) text.append(message.content);
  if (mine && !message.content) text.hidden = true;
  else fill(made, message);
  if (running?.message === message) made.setAttribute("aria-busy", "true");
  else if (!running) made.append(toolsOf(message, index));
  return made;
}

function fill(article, message) {
  let thought = article.querySelector(".thought");
  if (message.reasoning) {
    if (!thought) {
      thought = element("details", { class: "thought" }, element("summary", {}, "Reasoning"), element("div"));
      article.querySelector(".text").before(thought);
    }
    thought.lastChild.textContent = message.reasoning;
  }
  article.querySelector(".text").replaceChildren(markdown(message.content));
  article.querySelector(".error")?.remove();
  if (message.error) article.append(element("p", { class: "error" }, message.error));
}

function toolsOf(message, index) {
  const tools = element("div", { class: "tools" });
  if (message.role === "user") tools.append(button("Edit", () => edit(index), "Edit this message"));
  else {
    tools.append(button("Copy", () => navigator.clipboard?.writeText(message.content), "Copy this answer"));
    if (index === current.messages.length - 1) tools.append(button("Regenerate", regenerate, "Another answer"));
  }
  return tools;
}

function draw() {
  const log = $("messages");
  log.replaceChildren(...current.messages.map(drawMessage));
  if (!current.messages.length) {
    log.append(element("p", { class: "empty" }, "Say something to the model."));
  }
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
  $("new").disabled = Boolean(running);
  drawList();
  log.scrollTop = log.scrollHeight;
}

// ---- what a person does ---------------------------------------------------------------------------

function choose(conversation) {
  if (running) return;
  current = conversation;
  menu(false);
  draw();
  $("input").focus();
}

function rename(conversation) {
  const name = prompt("Name of the conversation", title(conversation));
  if (name !== null) { conversation.title = name.trim(); keep(); drawList(); }
}

function remove(conversation) {
  if (running || !confirm(`Delete "${title(conversation)}"?`)) return;
  conversations = conversations.filter((other) => other !== conversation);
  if (current === conversation) current = conversations[0] ?? fresh();
  for (const message of conversation.messages) for (const { id } of message.pictures ?? []) blobs.delete(id);
  keep();
  forgetPictures();
  draw();
}

async function exported(conversation) {
  const messages = [];
  for (const message of conversation.messages) {
    const pictures = [];
    for (const picture of message.pictures ?? []) {
      const data = await blobOf(picture).then(dataUrl, () => picture.thumb);
      pictures.push({ name: picture.name, data });
    }
    messages.push(message.pictures ? { ...message, pictures } : message);
  }
  const text = JSON.stringify({ system: settings.system || "", ...conversation, messages }, null, 1);
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const name = title(conversation).replace(/[^\p{L}\p{N} -]/gu, "").trim().slice(0, 40) || "conversation";
  element("a", { href: address, download: `${name}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

function edit(index) {
  const article = $("messages").children[index], message = current.messages[index];
  const field = element("textarea", { rows: "3", "aria-label": "Your message" });
  field.value = message.content;
  const done = () => {
    const text = field.value.trim();
    if (!text && !message.pictures) return;
    current.messages.splice(index);
    ask(text, message.pictures);
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") draw();
    if (sends(event)) { event.preventDefault(); done(); }
  });
  article.replaceChildren(field, element("div", { class: "tools" },
    button("Send", done, "Send the changed message"), button("Cancel", draw)));
  field.focus();
}

function regenerate() {
  current.messages.pop();
  const { content, pictures } = current.messages.pop();
  ask(content, pictures);
}

function sends(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

function menu(open) {
  $("side").classList.toggle("open", open);
  $("menu").setAttribute("aria-expanded", String(open));
}

// ---- the answer -----------------------------------------------------------------------------------

function headers() {
  return settings.key ? { Authorization: `Bearer ${settings.key}` } : {};
}

async function parts({ content, pictures }) {
  if (!pictures) return content;
  const made = [];
  for (const picture of pictures) {
    made.push({ type: "image_url", image_url: { url: await dataUrl(await blobOf(picture)) } });
  }
  return content ? [...made, { type: "text", text: content }] : made;
}

async function requestBody(conversation) {
  // A question that got no answer is left out: many models insist that the two take turns.
  const said = conversation.messages.slice(0, -1);
  const kept = said.filter((m, at) => (m.content || m.pictures)
    && (at === said.length - 1 || m.role !== "user" || said[at + 1].content));
  const messages = [];
  for (const message of kept) messages.push({ role: message.role, content: await parts(message) });
  if (settings.system) messages.unshift({ role: "system", content: settings.system });
  const body = { model: $("model").value, messages, stream: true, stream_options: { include_usage: true } };
  for (const name of ["temperature", "top_p", "seed", "max_tokens"]) {
    if (Number.isFinite(settings[name])) body[name] = settings[name];
  }
  return body;
}

async function ask(text, pictures) {
  if (running) return;
  notice("");
  const conversation = current, message = { role: "assistant", content: "", reasoning: "" };
  const question = pictures?.length ? { role: "user", content: text, pictures } : { role: "user", content: text };
  conversation.messages.push(question, message);
  conversations = [conversation, ...conversations.filter((other) => other !== conversation)];
  running = { controller: new AbortController(), message };
  keep();
  for (const { id } of question.pictures ?? []) {
    if (blobs.has(id)) inStore("readwrite", (store) => store.put(blobs.get(id), id));
  }
  draw();
  if (document.activeElement === document.body) $("stop").focus();
  const article = $("messages").lastElementChild;
  let drawn = 0, begun = 0, count = 0;
  const show = () => {
    const log = $("messages"), near = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    fill(article, message);
    if (near) log.scrollTop = log.scrollHeight;
    drawn = performance.now();
  };
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", signal: running.controller.signal,
      headers: { "Content-Type": "application/json", ...headers() },
      body: JSON.stringify(await requestBody(conversation)),
    });
    if (!response.ok) throw new Error(await problem(response));
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message ?? "The server could not go on.");
      const delta = event.choices?.[0]?.delta ?? {};
      const piece = delta.content ?? "", thought = delta.reasoning_content ?? delta.reasoning ?? "";
      if (piece || thought) {
        begun ||= performance.now();
        count++;
        message.content += piece;
        message.reasoning += thought;
        if (performance.now() - drawn > DRAW_MS) show();
      }
      const seconds = (performance.now() - begun) / 1000;
      const tokens = event.usage?.completion_tokens ?? count;
      if (begun && tokens > 1 && seconds > 0.2) $("speed").textContent = `${((tokens - 1) / seconds).toFixed(1)} tokens/s`;
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      message.error = error instanceof TypeError ? "The server cannot be reached." : error.message;
    }
  }
  message.content = message.content.trimStart();
  if (!message.content && !message.reasoning && !message.error) message.error = "There was no answer.";
  running = null;
  keep();
  draw();
  if (document.activeElement === document.body) $("input").focus();
  $("announce").textContent = message.error || `Model: ${message.content}`;
}

async function problem(response) {
  let text = "";
  try { text = (await response.json()).error?.message ?? ""; } catch { /* no JSON: the status tells */ }
  if (response.status === 401) return `${text || "The server wants an API key."} Enter it in the settings.`;
  return text || `The server answers ${response.status}.`;
}

async function* events(body) {
  const reader = body.getReader(), decoder = new TextDecoder();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += decoder.decode(value, { stream: true });
    const lines = held.split(/\r?\n/);
    held = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data.startsWith("[DONE]")) { reader.cancel(); return; }
      if (data) yield JSON.parse(data);
    }
  }
}

// ---- the machine ----------------------------------------------------------------------------------

let seeing = new Set();       // models that see pictures

function showAttach() {
  const sees = seeing.has($("model").value);
  for (const id of ["attach", "photograph"]) $(id).hidden = !sees;
}

async function loadModels() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) { notice(await problem(response)); return; }
    const { data } = await response.json();
    $("model").replaceChildren(...data.map(({ id }) => element("option", { value: id }, id)));
    if (data.some(({ id }) => id === settings.model)) $("model").value = settings.model;
    $("model").disabled = data.length < 2;
    seeing = new Set(data.filter((m) => m.input_modalities?.includes("image")).map(({ id }) => id));
    showAttach();
    notice("");
  } catch {
    notice("The server cannot be reached.");
  }
}

function tell(id, text, bad = false) {
  $(id).textContent = text ?? "–";
  $(id).classList.toggle("bad", bad);
}

function size(bytes) {
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : `${Math.round(bytes / 1e6)} MB`;
}

async function health() {
  if (document.hidden) return;
  try {
    const response = await fetch("health", { headers: headers() });
    showHealth(await response.json());
  } catch {
    for (const id of ["memory", "temperature", "throttling"]) tell(id, null);
  }
}

function showHealth(state) {
  const heat = state.temperature_celsius, slow = state.throttled;
  tell("memory", state.memory_bytes ? size(state.memory_bytes) : null);
  tell("temperature", heat == null ? "unknown" : `${heat.toFixed(0)} °C`, heat >= HOT_CELSIUS);
  tell("throttling", slow == null ? "unknown" : slow ? "slowed down" : "none", slow === true);
  if (!running && state.tokens_per_second > 0) tell("speed", `${state.tokens_per_second.toFixed(1)} tokens/s`);
}

// ---- settings -------------------------------------------------------------------------------------

const FIELDS = { system: "set-system", key: "set-key", temperature: "set-temperature",
  top_p: "set-top-p", seed: "set-seed", max_tokens: "set-max-tokens" };

function openSettings() {
  for (const [name, id] of Object.entries(FIELDS)) $(id).value = settings[name] ?? "";
  $("settings").showModal();
}

function saveSettings() {
  for (const [name, id] of Object.entries(FIELDS)) {
    const field = $(id);
    if (field.type !== "number") settings[name] = field.value.trim();
    else if (field.value === "") delete settings[name];
    else settings[name] = Number(field.value);
  }
  localStorage.setItem(SETTINGS, JSON.stringify(settings));
  loadModels();
  health();
}

// ---- the beginning --------------------------------------------------------------------------------

function grow() {
  const field = $("input");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

async function send() {
  await attaching;
  const text = $("input").value.trim();
  if ((!text && !waiting.length) || running) return;
  const pictures = waiting;
  waiting = [];
  drawWaiting();
  $("input").value = "";
  grow();
  ask(text, pictures);
}

$("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("input").addEventListener("input", grow);
$("input").addEventListener("keydown", (event) => {
  if (sends(event)) { event.preventDefault(); send(); }
});
for (const [opener, field] of [["attach", "files"], ["photograph", "camera"]]) {
  $(opener).addEventListener("click", () => $(field).click());
  $(field).addEventListener("change", () => {
    attachAll($(field).files);
    $(field).value = "";  // so that the same one can be chosen again
    $("input").focus();
  });
}
$("input").addEventListener("paste", (event) => {
  if (attachAll(event.clipboardData.files)) event.preventDefault();
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    $("composer").classList.toggle("over", kind === "dragover");
    if (kind === "drop") attachAll(event.dataTransfer.files);
  });
}
$("stop").addEventListener("click", () => { running?.controller.abort(); $("input").focus(); });
$("new").addEventListener("click", () => choose(fresh()));
$("menu").addEventListener("click", () => menu(!$("side").classList.contains("open")));
$("open-settings").addEventListener("click", openSettings);
// Not at "close", which comes some time later: what is sent at once would go without them.
$("settings").addEventListener("submit", (event) => {
  if (event.submitter?.value === "save") saveSettings();
});
$("model").addEventListener("change", () => {
  settings.model = $("model").value;
  showAttach();
  localStorage.setItem(SETTINGS, JSON.stringify(settings));
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || $("settings").open) return;
  if (running) running.controller.abort();
  else if ($("side").classList.contains("open")) { menu(false); $("menu").focus(); }
});
document.addEventListener("visibilitychange", health);
window.addEventListener("storage", (event) => {  // another tab of this page
  if (event.key !== STORE || running) return;
  conversations = sound(read(STORE, []));
  current = conversations.find((other) => other.id === current.id) ?? current;
  draw();
});

draw();
forgetPictures();
loadModels();
health();
setInterval(health, HEALTH_MS);
