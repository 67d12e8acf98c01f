"use strict";
// Sends one image after the other, and shows what is said of each. Whatever comes from a file or
// from the server is put on the page as text, never as HTML.

const facts = JSON.parse(document.getElementById("facts").textContent);
const MOST_IMAGES = 2000; // on the page at a time
const SHOWN_CLASSES = 8; // bars of an image, of the most probable classes
const at = (id) => document.getElementById(id);
let images = []; // {name, file, card, answer, problem, typed}: of each either answer or problem, once it is known
let waiting = []; // those of them that are not sent yet
let sending = false;

// ---- what is said of images and of patients

const point = () => facts.points[at("point")?.value] ?? null;
const first = (numbers) => numbers.indexOf(Math.max(...numbers));
const predicted = (probabilities) =>
  facts.multi_label
    ? facts.classes.filter((_, column) => probabilities[column] >= facts.thresholds[column]).join(" + ") || "none of them"
    : facts.classes[first(probabilities)];
const called = (probabilities, chosen) => {
  if (!chosen) return "";
  return probabilities[facts.classes.indexOf(chosen.name)] >= chosen.threshold ? chosen.name : `not ${chosen.name}`;
};
const percent = (number) => `${(100 * number).toFixed(1)} %`;
const UNLIKE = "Unlike what the network has learned from: nothing should be read into its class, probabilities or call.";
function mayBe(names) {
  if (names.length === 1) return `It may be ${names[0]} alone.`;
  if (names.length === facts.classes.length) return "It may be of any class: the network does not know.";
  return `It may be ${names.slice(0, -1).join(", ")} or ${names.at(-1)}.`;
}

function pattern() {
  try {
    const text = at("pattern").value;
    at("pattern").setCustomValidity("");
    return text ? new RegExp(text, "u") : null;
  } catch (error) {
    at("pattern").setCustomValidity(String(error.message));
    at("pattern").reportValidity();
    return null;
  }
}

function patientTold(image, expression) {
  const found = expression?.exec(image.name);
  return (found && (found.length > 1 ? found[1] : found[0])) || image.answer?.patient || "";
}

const patientOf = (image, expression) => image.typed || patientTold(image, expression);

function patients() {
  const expression = pattern();
  const found = new Map();
  for (const image of images) {
    const name = patientOf(image, expression);
    image.card.querySelector("input").placeholder = patientTold(image, expression);
    if (!name || (!image.answer && !image.problem)) continue;
    if (!found.has(name)) found.set(name, { name, images: [], unread: 0, noted: 0, unlike: 0 });
    const one = found.get(name);
    if (image.problem) one.unread += 1;
    else one.images.push(image.answer.probabilities);
    if (image.answer?.note) one.noted += 1;
    if (image.answer?.unlike) one.unlike += 1;
  }
  for (const one of found.values()) {
    if (!one.images.length) continue;
    one.probabilities = facts.classes.map((_, column) => one.images.reduce((sum, row) => sum + row[column], 0) / one.images.length);
    one.predicted = predicted(one.probabilities);
  }
  return [...found.values()];
}

// ---- what is shown

const put = (parent, selector, text) => { parent.querySelector(selector).textContent = text; };

function make(kind, className, text) {
  const found = document.createElement(kind);
  found.className = className;
  if (text !== undefined) found.textContent = text;
  return found;
}

const said = (probabilities) =>
  facts.multi_label ? predicted(probabilities) : `${predicted(probabilities)}, ${percent(Math.max(...probabilities))}`;

function showImage(image) {
  const { card, answer, problem } = image;
  card.className = answer ? (answer.unlike ? "strange" : "") : problem ? "failed" : "waiting";
  put(card, ".unlike", answer?.unlike ? UNLIKE : "");
  put(card, ".answer", answer ? said(answer.probabilities) : problem ? "could not be used" : "waiting");
  put(card, ".missing", problem ?? answer?.note ?? "");
  const chosen = answer ? called(answer.probabilities, point()) : "";
  put(card, ".call", chosen && `called ${chosen}`);
  put(card, ".set", answer?.set && !answer.unlike ? mayBe(answer.set) : "");
  if (!answer || card.querySelector(".view.seen")) return;
  card.querySelector(".view").classList.add("seen");
  card.querySelector(".picture").src = answer.picture;
  card.querySelector(".picture").alt = image.name;
  if (answer.map) card.querySelector(".map").src = answer.map;
  else card.querySelector(".map").remove();
  const order = facts.classes.map((_, column) => column);
  if (order.length > SHOWN_CLASSES) order.sort((a, b) => answer.probabilities[b] - answer.probabilities[a]);
  for (const column of order.slice(0, SHOWN_CLASSES)) {
    const [row, track, fill] = [make("li", ""), make("span", "track"), make("div", "fill")];
    fill.style.width = `${100 * answer.probabilities[column]}%`;
    track.append(fill);
    row.append(make("span", "", facts.classes[column]), track, make("span", "value", percent(answer.probabilities[column])));
    card.querySelector(".bars").append(row);
  }
  if (order.length > SHOWN_CLASSES) card.querySelector(".bars").append(make("li", "", `and ${order.length - SHOWN_CLASSES} more`));
}

function showPatients() {
  const found = patients();
  at("patients").hidden = at("save-patients").hidden = !found.length;
  const rows = found.map((one) => {
    const row = make("tr", "");
    const name = make("th", "", one.name);
    name.scope = "row";
    const same = one.images.filter((probabilities) => predicted(probabilities) === one.predicted).length;
    const notes = [one.unlike && `${one.unlike} unlike what was learned from`, one.noted && `${one.noted} with a note`, one.unread && `${one.unread} could not be used`];
    row.append(name);
    for (const [label, text, className] of [
      ["images", one.images.length, "number"],
      ["class", one.predicted ?? "", ""],
      ["probability", one.probabilities ? percent(Math.max(...one.probabilities)) : "", "number"],
      ["of this class", one.probabilities ? `${same} of ${one.images.length}` : "", "number"],
      ["called", one.probabilities ? called(one.probabilities, point()?.of_patients) : "", ""],
      ["notes", notes.filter(Boolean).join(", "), ""],
    ]) {
      const cell = make("td", className, text);
      cell.dataset.label = label;
      row.append(cell);
    }
    return row;
  });
  at("patients").querySelector("tbody").replaceChildren(...rows);
}

function showStatus() {
  const known = images.filter((image) => image.answer || image.problem).length;
  const bad = images.filter((image) => image.problem).length;
  at("images").hidden = at("controls").hidden = !images.length;
  at("status").textContent = images.length ? `${known} of ${images.length} answered${bad ? `, ${bad} could not be used` : ""}` : "";
}

function showAll() {
  const chosen = point();
  const words = (who, what, where, one) =>
    `${who} is called ${one.name} if ${what} is at least ${one.threshold.toPrecision(4)}: ${where}, sensitivity ${one.sensitivity.toFixed(3)} and specificity ${one.specificity.toFixed(3)}.`;
  const ofImages = chosen && words("An image", "its probability of this class", "on the validation images", chosen);
  const ofPatients = chosen?.of_patients
    ? words("A patient", "the mean of these", "on the patients of those images", chosen.of_patients)
    : "Patients are not called, because no patient is known to have several validation images.";
  at("point-words").textContent = chosen ? `${ofImages} ${ofPatients}` : "";
  images.forEach(showImage);
  showStatus();
  showPatients();
}

// ---- what is sent

function add(files) {
  at("told").textContent = "";
  const room = MOST_IMAGES - images.length;
  if (files.length > room) {
    at("told").textContent = `This page holds ${MOST_IMAGES} images, and ${files.length - room} of these were left out: save the CSV and clear it first, or use medmambase-predict, which takes any number.`;
  }
  for (const { name, file } of files.slice(0, Math.max(0, room))) {
    const card = at("card").content.firstElementChild.cloneNode(true);
    const image = { name, file, card, answer: null, problem: null, typed: "" };
    put(card, "h3", name);
    card.querySelector("input").addEventListener("change", (event) => {
      image.typed = event.target.value.trim();
      showPatients();
    });
    images.push(image);
    waiting.push(image);
    showImage(image);
    at("cards").append(card);
  }
  showStatus();
  send();
}

async function send() {
  if (sending) return;
  sending = true;
  while (waiting.length) {
    const image = waiting.shift();
    const found = await ask(image.file);
    image.file = null; // its memory can be used again
    if (found.problem !== null) image.problem = found.problem;
    else image.answer = found;
    if (!images.includes(image)) continue; // the page was cleared meanwhile
    showImage(image);
    showStatus();
    if (!waiting.length || images.length < 50 || waiting.length % 20 === 0) showPatients();
  }
  sending = false;
}

async function ask(file) {
  if (file.size > facts.most * 2 ** 20) {
    return { problem: `more than ${facts.most} MB, the limit here; --max-mb of medmambase-serve raises it` };
  }
  let body;
  try {
    body = await file.arrayBuffer();
  } catch {
    return { problem: "cannot be read: a folder, or a file that has changed or gone" };
  }
  for (;;) {
    try {
      const response = await fetch("/predict", { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body });
      if (response.status !== 503) return await response.json();
    } catch {
      return { problem: "the server does not answer; start medmambase-serve again, and drop the image again" };
    }
    await new Promise((done) => setTimeout(done, 1000)); // others send as well, and it has enough for now
  }
}

// ---- what is dropped

async function filesOf(entry) {
  if (entry.isFile) {
    return new Promise((done) => entry.file((file) => done([{ name: entry.fullPath.slice(1), file }]), () => done([])));
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((done) => reader.readEntries(done, () => done([]))); // a hundred at a time
    if (!some.length) break;
    for (const one of some) found.push(...(await filesOf(one)));
  }
  return found.sort((a, b) => (a.name < b.name ? -1 : 1));
}

async function dropped(transfer) {
  // Asked for at once: once the event is over there are none.
  const items = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!items.length) return [...transfer.files].map((file) => ({ name: file.name, file }));
  return (await Promise.all(items.map(filesOf))).flat();
}

for (const kind of ["dragover", "dragenter"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) at("drop").classList.remove("over");
});
document.addEventListener("drop", async (event) => {
  event.preventDefault(); // or the browser would open the file in the page's place
  at("drop").classList.remove("over");
  add(await dropped(event.dataTransfer));
});
at("files").addEventListener("change", (event) => {
  add([...event.target.files].map((file) => ({ name: file.name, file })));
  event.target.value = ""; // the same file may be chosen again
});

// ---- what is saved

// As the files of medmambase-predict: a cell that a spreadsheet would take for a formula begins with an apostrophe.
function cell(value) {
  let text = String(value ?? "");
  if (typeof value === "string" && /^'*[=+\-@\t\r\n]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// A column that is there where something is known.
const onlyIf = (known, value) => (known === null ? [] : [value]);

function save(name, rows) {
  const link = make("a", "");
  link.href = URL.createObjectURL(new Blob([rows.map((row) => `${row.map(cell).join(",")}\n`).join("")], { type: "text/csv" }));
  link.download = `${facts.name}-${name}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

at("save").addEventListener("click", () => {
  const chosen = point();
  const expression = pattern();
  const header = ["path", "predicted", "probability", ...facts.classes.map((name) => `prob_${name}`), "error", "patient", "note"];
  header.push(...onlyIf(facts.false_alarms, "unlike"), ...onlyIf(facts.coverage, "set"));
  const rows = images.filter((image) => image.answer || image.problem).map((image) => {
    const known = image.answer?.probabilities;
    return [
      image.name, known ? predicted(known) : "", known ? Math.max(...known) : "",
      ...(known ?? facts.classes.map(() => "")), image.problem ?? "", patientOf(image, expression), image.answer?.note ?? "",
      ...onlyIf(facts.false_alarms, known ? (image.answer.unlike ? "yes" : "no") : ""),
      ...onlyIf(facts.coverage, image.answer?.set?.join("|") ?? ""),
      ...(chosen ? [known ? called(known, chosen) : "", known ? chosen.threshold : ""] : []),
    ];
  });
  save("images", [chosen ? [...header, "called", "threshold"] : header, ...rows]);
});
at("save-patients").addEventListener("click", () => {
  const chosen = point()?.of_patients;
  const header = ["patient", "predicted", "probability", ...facts.classes.map((name) => `prob_${name}`), "images", "unread", "noted", ...onlyIf(facts.false_alarms, "unlike")];
  save("patients", [chosen ? [...header, "called", "threshold"] : header, ...patients().map((one) => [
    one.name, one.predicted ?? "", one.probabilities ? Math.max(...one.probabilities) : "",
    ...(one.probabilities ?? facts.classes.map(() => "")), one.images.length, one.unread, one.noted, ...onlyIf(facts.false_alarms, one.unlike),
    ...(chosen ? [one.probabilities ? called(one.probabilities, chosen) : "", one.probabilities ? chosen.threshold : ""] : []),
  ])]);
});
at("clear").addEventListener("click", () => {
  images = [];
  waiting = [];
  at("cards").replaceChildren();
  at("told").textContent = "";
  showAll();
});
at("point")?.addEventListener("change", showAll);
at("pattern").addEventListener("input", showPatients);
at("maps")?.addEventListener("change", (event) => at("cards").classList.toggle("no-maps", !event.target.checked));
showAll();
