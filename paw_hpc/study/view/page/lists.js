// The list of groups and their episodes, and the list of surprises. Long lists are shown a page at a time.

const PAGE = 80; // groups

function filtered(episodes, hits) {
  const kept = episodes.filter((e) =>
    (!state.outcome || e.success === (state.outcome === "success")) &&
    (!state.type || e.task_type === state.type) &&
    (!state.selected || e.selected) &&
    (!state.invalid || e.invalid) &&
    (!hits || hits.has(`${e.group}/${e.member}`)));
  const key = { surprise: (e) => -(e.surprise ?? -1), advantage: (e) => -(e.advantage ?? -1e9), steps: (e) => -e.steps }[state.order];
  return key ? kept.toSorted((a, b) => key(a) - key(b)) : kept;
}

function inGroups(episodes) {
  const groups = new Map();
  for (const e of episodes) groups.set(e.group, [...(groups.get(e.group) ?? []), e]);
  return [...groups.values()];
}

function chip(e) {
  const current = e.group === state.group && e.member === state.member;
  const said = `member ${e.member}, ${e.success ? "success" : "failure"}, ${e.steps} steps`;
  const label = e.advantage === null ? `${e.member}` : `${e.member}\u2009 ${signed(e.advantage)}`;
  const marks = (e.invalid ? " \u2717" : "") + (e.selected ? " \u25c6" : "");
  const choose = () => go({ group: e.group, member: e.member, step: 0, at: null, view: "steps" });
  return element("button", { type: "button", class: `chip ${e.success ? "success" : "failure"}`, "aria-current": String(current), title: said, onclick: choose }, label + marks);
}

function showGroups(place, episodes) {
  const groups = inGroups(episodes);
  const current = groups.findIndex((members) => members[0].group === state.group);
  const page = Math.min(state.page ?? Math.max(0, Math.floor(current / PAGE)), Math.max(0, Math.ceil(groups.length / PAGE) - 1));
  const shown = groups.slice(page * PAGE, (page + 1) * PAGE).map((members) =>
    element("div", { class: "group" },
      element("h3", {}, `${members[0].group}  ${members[0].task_id}`),
      element("div", { class: "chips" }, ...members.map(chip))));
  const count = element("p", { class: "facts", id: "count" }, `${episodes.length} episodes, ${episodes.reduce((sum, e) => sum + e.steps, 0)} steps`);
  place.replaceChildren(count, ...shown, pages(groups.length, page));
  reveal(place, place.querySelector("[aria-current=true]"));
}

// Scrolls the list alone: on a narrow window, where all of the page scrolls, it stays where it is.
function reveal(list, item) {
  if (!item) return;
  const seen = list.getBoundingClientRect(), group = item.closest(".group").getBoundingClientRect(), own = item.getBoundingClientRect();
  if (group.top < seen.top) list.scrollTop -= seen.top - group.top;
  else if (own.bottom > seen.bottom) list.scrollTop += Math.min(own.bottom - seen.bottom + 8, group.top - seen.top);
}

function pages(count, page) {
  if (count <= PAGE) return element("span");
  const turn = (by, label, possible) => element("button", { type: "button", disabled: !possible, onclick: () => go({ page: page + by }) }, label);
  const last = Math.ceil(count / PAGE) - 1;
  return element("p", {}, turn(-1, "\u2190", page > 0), ` groups ${page * PAGE + 1} to ${Math.min(count, (page + 1) * PAGE)} of ${count} `, turn(1, "\u2192", page < last));
}

async function showSurprises(place) {
  const found = await ask("surprises", { run: state.run, file: state.file });
  const rows = found.map((each) => {
    const open = () => go({ group: each.group, member: each.member, step: each.step, at: each.at, view: "steps" });
    const text = element("span", { class: "tokens" }, each.before ? `\u2026${each.before}` : "", token(each.token, { p: each.p }, true), `${each.after}\u2026`);
    return element("tr", {},
      element("td", { class: "numbers" }, probability(each.p)),
      element("td", { class: "numbers" }, each.times === 1 ? "" : `${each.times}\u00d7`),
      element("td", {}, element("button", { type: "button", class: "whole", onclick: open }, `group ${each.group}, member ${each.member}, step ${each.step}`)),
      element("td", {}, each.action), element("td", {}, text));
  });
  const head = element("tr", {}, element("th", { class: "numbers" }, "p"), element("th", { class: "numbers" }, "like it"), element("th", {}, "where"), element("th", {}, "after"), element("th", {}, "what came"));
  const none = "The policy was not asked about next observations here: train with the world-model loss, or look at an evaluation.";
  place.replaceChildren(element("h2", {}, "What was expected least"), rows.length ? element("div", { class: "wide" }, element("table", { class: "surprises" }, head, ...rows)) : element("p", {}, none));
}
