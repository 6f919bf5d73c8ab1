"use strict";

// Texts from the server and from files are put in by textContent alone: names may hold any character.

const get = (id) => document.getElementById(id);
const ORDINALS = ["first", "second"];
const SUMMARIES = {
  400: "The server cannot use what was sent.",
  401: "The API key is missing or wrong. Enter it under Access.",
  404: "This server does not offer that.",
  408: "The images arrived too slowly. Try again.",
  413: "This is too large for the server.",
  503: "The server is busy or still starting. Try again in a moment.",
  504: "The server took too long. Try again.",
};

/** An element with a class, a text and children. */
function element(name, { kind = "", text = "", children = [] } = {}) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text !== "") made.textContent = text;
  made.append(...children);
  return made;
}

// Requests

/** The server's reply as a value; an Error whose `summary` is in plain words if it is none. */
async function ask(path, options = {}, files = []) {
  const key = get("key").value.trim();
  if (!/^[\x20-\x7e]*$/.test(key)) throw problem("The API key holds a character that no key has.");
  let reply, value;
  try {
    reply = await fetch(path, { ...options, headers: key ? { "X-API-Key": key } : {}, cache: "no-store" });
  } catch {
    throw problem("The server did not answer, or a file has changed since it was chosen.");
  }
  try {
    value = await reply.json();
  } catch {
    value = null;
  }
  if (reply.ok && value !== null) return value;
  if (reply.status === 401) get("access").hidden = false;
  const reason = value !== null && typeof value.error === "string" ? value.error : "";
  throw problem(summarize(reply.status, reason, files), reason, reply.status);
}

function problem(summary, reason = "", status = 0) {
  return Object.assign(new Error(summary), { summary, reason, status });
}

function summarize(status, reason, files) {
  const found = /^image (\d+): /.exec(reason);
  const file = found === null ? undefined : files[Number(found[1])];
  if (file !== undefined) {
    const about = `the ${file.ordinal} image (${file.name})`;
    if (status === 413) return `The server does not accept ${about}: it is too large.`;
    return `The server cannot read ${about}.`;
  }
  return SUMMARIES[status] ?? (status < 500 ? SUMMARIES[400] : "The server failed.");
}

// Images

const slots = [...document.querySelectorAll(".slot")].map((root, index) => makeSlot(root, ORDINALS[index]));

function makeSlot(root, ordinal) {
  const slot = { root, ordinal, file: null };
  const picture = root.querySelector("img"), empty = root.querySelector(".empty");
  const inputs = [...root.querySelectorAll("input")], remove = root.querySelector(".remove");
  let shown = "";

  slot.put = (file) => {
    slot.file = file;
    URL.revokeObjectURL(shown);
    shown = file === null ? "" : URL.createObjectURL(file);
    if (file === null) picture.removeAttribute("src");
    else picture.src = shown;
    picture.hidden = file === null;
    picture.alt = file === null ? "" : `The ${ordinal} image, ${file.name}`;
    empty.hidden = file !== null;
    empty.textContent = "Drop an image here";
    root.querySelector(".file-name").textContent = file === null ? "No image" : file.name;
    remove.hidden = file === null;
    forget();
  };
  picture.addEventListener("error", () => {
    if (slot.file === null) return;
    picture.hidden = true;
    empty.hidden = false;
    empty.textContent = "No preview";
  });
  for (const input of inputs) {
    input.addEventListener("change", () => {
      if (input.files.length) slot.put(input.files[0]);
      input.value = "";  // so that the same file may be chosen again
    });
  }
  remove.addEventListener("click", () => {
    slot.put(null);
    inputs[0].focus();
  });
  return slot;
}

/** The images that are there, in order. */
function chosen() {
  return slots.filter((slot) => slot.file !== null)
    .map(({ file, ordinal }) => ({ file, ordinal, name: file.name }));
}

// A file that is dropped beside a slot would otherwise replace the page.
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  for (const slot of slots) slot.root.classList.toggle("over", slot.root.contains(event.target));
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) for (const slot of slots) slot.root.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  for (const slot of slots) slot.root.classList.remove("over");
  const files = [...event.dataTransfer.files].slice(0, slots.length);
  const onto = slots.find((slot) => slot.root.contains(event.target));
  const order = onto ? [onto, ...slots.filter((slot) => slot !== onto)]
    : [...slots].sort((one, other) => (one.file !== null) - (other.file !== null));
  // Two files fill the slots in their order.
  (files.length > 1 ? slots : order).slice(0, files.length).forEach((slot, index) => slot.put(files[index]));
});

// Results

let turn = 0, isBusy = false;

/** Leave out the result of images that are gone, also one that is on its way. */
function forget() {
  turn += 1;
  setBusy(false);
  show(element("p", { kind: "quiet", text: "Nothing was asked about these images yet." }));
  get("command").hidden = true;
}

function show(...children) {
  get("result").replaceChildren(...children);
}

function setBusy(value) {
  isBusy = value;
  for (const name of Object.keys(ACTIONS)) get(name).setAttribute("aria-disabled", String(value));
}

function showProblem(error) {
  const children = [element("strong", { text: error.summary ?? "The page failed." })];
  const reason = error.summary === undefined ? String(error) : error.reason;
  if (reason) children.push(element("br"), element("span", { text: `The server says: ${reason}` }));
  show(element("p", { kind: "problem", children }));
}

const rounded = (value) => value.toFixed(4).replace(/^-(0\.0+)$/, "$1");

function verdict(same) {
  if (same === null) return element("span", { kind: "quiet", text: "no verdict" });
  return element("span", { kind: same ? "same" : "other", text: same ? "the same" : "not the same" });
}

function aboutThreshold(threshold) {
  return threshold === null
    ? "The server has no threshold, so it gives no verdict."
    : `Threshold: ${rounded(threshold)}. From this cosine on, the server calls two images the same.`;
}

function showSimilarity({ cosine, same, threshold }) {
  const percent = (value) => `${Math.min(100, Math.max(0, 50 * (value + 1)))}%`;
  const value = element("div", { kind: "value" });
  value.style.width = percent(cosine);
  const scale = element("div", { kind: "scale", children: [value] });
  scale.setAttribute("aria-hidden", "true");  // the text says the same
  if (threshold !== null) {
    const mark = element("div", { kind: "threshold" });
    mark.style.left = percent(threshold);
    scale.append(mark);
  }
  const ends = element("div", { kind: "ends", children: ["-1", "0", "1"].map((text) => element("span", { text })) });
  ends.setAttribute("aria-hidden", "true");
  const line = element("p", { children: ["Cosine ", element("span", { kind: "cosine", text: rounded(cosine) }), " ", verdict(same)] });
  show(line, scale, ends, element("p", { kind: "quiet", text: aboutThreshold(threshold) }));
}

/** A table for each image. Columns: [title, whether it is a number, function from an entry to a text or an element]. */
function tables(results, files, columns, none) {
  return results.map((entries, index) => {
    const caption = element("caption", { text: `The ${files[index].ordinal} image, ${files[index].name}` });
    const head = columns.map(([text, isNumber]) => {
      const cell = element("th", { text, kind: isNumber ? "number" : "" });
      cell.scope = "col";
      return cell;
    });
    const rows = entries.map((entry) => element("tr", {
      children: columns.map(([, isNumber, cell]) => element("td", { kind: isNumber ? "number" : "", children: [cell(entry)] })),
    }));
    if (!rows.length) return element("p", { text: `${caption.textContent}: ${none}` });
    const parts = [element("thead", { children: [element("tr", { children: head })] }), element("tbody", { children: rows })];
    return element("table", { children: [caption, ...parts] });
  });
}

function showMatches({ results, threshold }, files) {
  const columns = [
    ["Name", false, (entry) => entry.name],
    ["Cosine", true, (entry) => rounded(entry.cosine)],
    ["Verdict", false, (entry) => verdict(entry.same)],
  ];
  show(...tables(results, files, columns, "the gallery has no entry."), element("p", { kind: "quiet", text: aboutThreshold(threshold) }));
}

function showClasses({ results, normalized_over: count }, files) {
  const columns = [
    ["Class", false, (entry) => entry.name],
    ["Number", true, (entry) => String(entry.number)],
    ["Probability", true, (entry) => `${(100 * entry.probability).toFixed(2)} %`],
    ["Score", true, (entry) => rounded(entry.score)],
  ];
  const about = `Probabilities compare ${count} classes with each other. An image of none of them may have a high one too.`;
  show(...tables(results, files, columns, "the model has no class."), element("p", { kind: "quiet", text: about }));
}

// Actions

const ACTIONS = {
  verify: { show: showSimilarity, least: 2, takesCount: false, missing: "Choose two images first." },
  identify: { show: showMatches, least: 1, takesCount: true, missing: "Choose an image first." },
  classify: { show: showClasses, least: 1, takesCount: true, missing: "Choose an image first." },
};

async function act(name) {
  if (isBusy) return;
  const action = ACTIONS[name], files = chosen();
  if (files.length < action.least) {
    showProblem(problem(action.missing));
    return;
  }
  const count = get("k").value.trim();
  const path = action.takesCount && count ? `${name}?k=${encodeURIComponent(count)}` : name;
  const body = new FormData();
  for (const { file } of files) body.append("image", file, "image");
  const mine = ++turn;
  setBusy(true);
  show(element("p", { kind: "quiet", text: "Waiting for the server …" }));
  showCommand(path, files);
  try {
    const value = await ask(path, { method: "POST", body }, files);
    if (mine === turn) action.show(value, files);
  } catch (error) {
    if (mine === turn) showProblem(error);
  }
  if (mine !== turn) return;
  setBusy(false);
  get("result").scrollIntoView({ block: "nearest" });
}

for (const name of Object.keys(ACTIONS)) get(name).addEventListener("click", () => act(name));

// The command of curl

/** A text as one word of a POSIX shell. */
const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** A file as curl's -F takes it: a name with its special characters stands in double quotes, and '-' is a file. */
function formFile(name) {
  const path = name === "-" ? "./-" : name;
  return /[,;"\\]/.test(path) || path !== path.trim() ? `image=@"${path.replace(/["\\]/g, "\\$&")}"` : `image=@${path}`;
}

function showCommand(path, files) {
  const words = ["curl", ...files.flatMap(({ name }) => ["-F", quoted(formFile(name))])];
  if (get("key").value.trim()) words.push("-H", '"X-API-Key: $PLSC_API_KEY"');
  words.push(quoted(new URL(path, document.baseURI).href));
  get("curl").textContent = words.join(" ");
  get("copied").textContent = "";
  get("command-help").textContent = get("key").value.trim()
    ? "In the folder of the images, with the API key in the variable PLSC_API_KEY." : "In the folder of the images.";
  get("copy").hidden = navigator.clipboard === undefined;  // browsers have it at HTTPS and on this machine alone
  get("command").hidden = false;
}

get("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(get("curl").textContent);
    get("copied").textContent = "Copied.";
  } catch {
    get("copied").textContent = "The browser does not allow it; select the text instead.";
  }
});

// The server's own description

async function describe() {
  const key = get("key").value.trim();
  try {
    const found = await ask("openapi.json");
    get("key-state").textContent = key ? "The server accepts the key." : "";
    get("access").hidden = found.security === undefined;
    get("document").hidden = found.security !== undefined;  // a link sends no key
    get("version").textContent = found.info.version;
    get("description").textContent = found.info.description;
    for (const name of Object.keys(ACTIONS)) get(name).hidden = !(`/${name}` in found.paths);
    get("count").hidden = get("identify").hidden && get("classify").hidden;
    get("endpoints").replaceChildren(...Object.entries(found.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, operation]) => element("li", {
        children: [element("code", { text: `${method.toUpperCase()} ${path}` }), element("span", { text: operation.summary })],
      }))));
  } catch (error) {
    if (error.status !== 401) showProblem(error);
    else get("key-state").textContent = key ? "The server does not accept this key." : "";
  }
}

get("use-key").addEventListener("click", describe);
get("key").addEventListener("keydown", (event) => {
  if (event.key === "Enter") describe();
});
describe();
