// What is shown, as the address says it; controls and keys.

const byId = (id) => document.getElementById(id);
const TEXTS = ["run", "file", "view", "beside", "outcome", "type", "order", "text"], NUMBERS = ["group", "member", "step", "at", "page"], SWITCHES = ["selected", "invalid", "prompt"];
const state = { step: 0, view: "steps" };
let index = [], shown = [], turn = 0;
let narrowed = false; // a filter was changed: where it leaves out the episode that is shown, another one is

function readAddress() {
  const said = new URLSearchParams(location.hash.slice(1));
  for (const key of TEXTS) state[key] = said.get(key);
  for (const key of NUMBERS) state[key] = /^\d+$/.test(said.get(key) ?? "") ? Number(said.get(key)) : null;
  for (const key of SWITCHES) state[key] = said.has(key);
  state.step ??= 0;
  state.view ??= "steps";
}

function address(changes) {
  const said = new URLSearchParams();
  for (const [key, value] of Object.entries({ ...state, ...changes })) {
    const plain = value === null || value === undefined || value === false || value === "" || (key === "view" && value === "steps");
    if (!plain) said.set(key, value === true ? "1" : value);
  }
  return `#${said}`;
}

function go(changes) {
  const to = address(changes);
  if (to === location.hash) return show();
  location.hash = to; // its event shows it
}

const placeText = (place) => [place.run, place.file, place.group, place.member].map(encodeURIComponent).join("/");

function parsePlace(text) {
  const [run, file, group, member] = (text ?? "").split("/").map(decodeURIComponent);
  return member === undefined ? null : { run, file, group: Number(group), member: Number(member) };
}

function fileTitle(key) {
  const [, kind, update, label] = /^(update|eval)_0*(\d+)(?:_(.*))?$/.exec(key) ?? [null, "", "", key];
  return kind === "update" ? `update ${update}` : `evaluation after ${update}: ${label}`;
}

function options(select, values, current) {
  const made = values.map(([value, title]) => element("option", { value, selected: value === current }, title));
  select.replaceChildren(...made);
}

function settle() {
  const run = index.find((each) => each.name === state.run) ?? index[0];
  state.run = run.name;
  const file = run.files.find((each) => each.key === state.file) ?? run.files.at(-1);
  state.file = file?.key ?? null;
  options(byId("run"), index.map((each) => [each.name, each.name]), state.run);
  options(byId("file"), run.files.map((each) => [each.key, fileTitle(each.key)]), state.file);
  for (const id of ["outcome", "order", "text"]) if (byId(id) !== document.activeElement) byId(id).value = state[id] ?? "";
  for (const id of ["selected", "invalid"]) byId(id).checked = state[id];
}

async function found() {
  if (!state.text) return null;
  const hits = new Map();
  for (const [group, member, step] of await ask("search", { run: state.run, file: state.file, text: state.text })) {
    const key = `${group}/${member}`;
    hits.set(key, (hits.get(key) ?? new Set()).add(step));
  }
  return hits;
}

async function show() {
  const mine = ++turn;
  try {
    readAddress();
    settle();
    const [episodes, hits] = await Promise.all([ask("episodes", { run: state.run, file: state.file }), found()]);
    const types = [...new Set(episodes.map((e) => e.task_type))].sort();
    const wanted = filtered(episodes, hits);
    if (mine !== turn) return; // something newer is being shown
    options(byId("type"), [["", "any"], ...types.map((type) => [type, type])], state.type ?? "");
    if (!(narrowed ? wanted : episodes).some((e) => e.group === state.group && e.member === state.member)) {
      Object.assign(state, { group: wanted[0]?.group ?? null, member: wanted[0]?.member ?? null, step: 0, at: null });
    }
    shown = wanted;
    narrowed = false;
    showGroups(byId("groups"), wanted);
    const place = byId("place");
    if (state.view === "surprises") await showSurprises(place);
    else if (state.group === null) place.replaceChildren(element("p", {}, "No kept episode is like that."));
    else if (state.view === "group") await showGroup(place, episodes);
    else await showEpisode(place, hits);
    if (mine !== turn) return;
    history.replaceState(null, "", address({})); // the whole place, also where a part of it was not asked for
    byId("said").textContent = "";
  } catch (error) {
    byId("said").textContent = error.message;
  }
  if (mine === turn) document.documentElement.dataset.turns = mine; // who drives the page can wait for it
}

function narrow(changes) {
  narrowed = true;
  go({ ...changes, page: null });
}

function walk(by) {
  const at = shown.findIndex((e) => e.group === state.group && e.member === state.member);
  const next = shown[Math.min(Math.max(at + by, 0), shown.length - 1)];
  if (next) go({ group: next.group, member: next.member, step: 0, at: null, page: null });
}

function turnTo(by) {
  const files = index.find((each) => each.name === state.run).files;
  const next = files[files.findIndex((each) => each.key === state.file) + by];
  if (next) go({ file: next.key, step: 0, at: null, page: null });
}

async function stepBy(by) {
  const steps = await ask("steps", { run: state.run, file: state.file, group: state.group, member: state.member });
  const other = parsePlace(state.beside);
  const longest = Math.max(steps.length, other ? (await ask("steps", other)).length : 0);
  go({ step: Math.min(Math.max(state.step + by, 0), longest - 1), at: null });
}

function nextBeside() {
  const places = [...(byId("beside")?.options ?? [])].map((option) => option.value);
  if (places.length > 1) go({ beside: places[(places.indexOf(state.beside ?? "") + 1) % places.length] || null });
}

const KEYS = {
  j: () => stepBy(1), ArrowDown: () => stepBy(1), k: () => stepBy(-1), ArrowUp: () => stepBy(-1),
  l: () => walk(1), ArrowRight: () => walk(1), h: () => walk(-1), ArrowLeft: () => walk(-1),
  "]": () => turnTo(1), "[": () => turnTo(-1), c: nextBeside,
  g: () => go({ view: state.view === "group" ? "steps" : "group" }), s: () => go({ view: state.view === "surprises" ? "steps" : "surprises" }),
  p: () => go({ prompt: !state.prompt }), "/": () => byId("text").focus(), "?": () => byId("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const typing = event.target.matches("input[type=search], select");
  if (typing && event.key === "Escape") event.target.blur();
  if (typing || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});
window.addEventListener("hashchange", show);
byId("run").addEventListener("change", (event) => go({ run: event.target.value, page: null }));
byId("file").addEventListener("change", (event) => go({ file: event.target.value, page: null }));
for (const id of ["outcome", "type", "order"]) byId(id).addEventListener("change", (event) => narrow({ [id]: event.target.value }));
for (const id of ["selected", "invalid"]) byId(id).addEventListener("change", (event) => narrow({ [id]: event.target.checked }));
byId("text").addEventListener("change", (event) => narrow({ text: event.target.value }));
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("show-surprises").addEventListener("click", () => KEYS.s());
byId("show-help").addEventListener("click", () => KEYS["?"]());
byId("legend").append(...legend());

async function refresh() {
  const now = await ask("index");
  const changed = JSON.stringify(now) !== JSON.stringify(index);
  index = now;
  return changed;
}
refresh().then(show, (error) => { byId("said").textContent = error.message; });
if (!packed.size) setInterval(() => { if (!document.hidden) refresh().then((changed) => changed && settle(), () => {}); }, 15000); // a run may go on
