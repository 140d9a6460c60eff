// One episode, or two beside each other, or all members of a group.

// Selected and not trained on: in a run without the world-model loss, or with lambda at 0.
const untaught = (step) => step.selected && step.wm_weight === 0;

function flags(step) {
  const shown = [step.valid ? null : element("span", { class: "invalid" }, "\u2717 invalid"), step.selected ? (untaught(step) ? "\u25c7" : "\u25c6") : null];
  const p = step.observation_p;
  if (p?.length) shown.push(`${number(p.reduce((sum, each) => sum - Math.log(Math.max(each, 1e-30)), 0) / p.length)} nats/token`);
  if (step.reward) shown.push(`reward ${step.reward}`);
  return element("span", { class: "flags" }, ...shown.filter(Boolean).flatMap((each) => [element("span", { class: "whole" }, each), " "]));
}

function detail(step, at) {
  const p = step.observation_p;
  const parts = [facts([
    ["entropy", step.entropy === null ? null : number(step.entropy)], ["advantage", step.advantage === null ? null : signed(step.advantage)],
    ["selected", step.selected === null ? null : untaught(step) ? "yes, not taught" : step.selected ? "yes" : "no"], ["lambda", step.wm_lambda === null ? null : number(step.wm_lambda)],
    ["world-model weight", step.wm_weight === null ? null : step.wm_weight ? step.wm_weight.toPrecision(2) : 0], ["reward", step.reward], ["weights", step.weight_version],
  ])];
  parts.push(element("details", { class: "prompt", open: state.prompt }, element("summary", {}, "prompt"), element("pre", {}, step.prompt)));
  parts.push(element("h3", {}, "response"), tokens(step.response, { p: step.response_p, entropy: step.response_entropy }));
  parts.push(element("h3", {}, p ? "next observation, as it was expected" : "next observation"), tokens(step.observation, { p, silenced: step.silenced, copied: step.copied }, at));
  if (!step.observation.length) parts.push(element("p", { class: "facts" }, "none: the episode has ended"));
  const least = leastProbable(step, 8).flatMap(({ p: each, at: n }) =>
    [element("span", { class: "whole" }, token(step.observation[n], { p: each, silenced: step.silenced?.[n] }), ` ${probability(each)}`), "   "]);
  if (least.length) parts.push(element("h3", {}, "expected least"), element("div", { class: "tokens least" }, ...least));
  if (step.predicted !== null) parts.push(element("h3", {}, "what the policy would have said (greedy)"), element("div", { class: "tokens" }, step.predicted));
  return element("div", { class: "detail" }, ...parts);
}

function stepItem(step, current, found, choose, at) {
  const row = element("button", { type: "button", class: "row", onclick: () => choose(step.step) },
    element("span", { class: "number" }, String(step.step)), element("span", { class: "action" }, step.action || "(no action)"), flags(step));
  return element("li", { "aria-current": String(current), class: found ? "found" : null }, row, current ? detail(step, at) : null);
}

function summary(e) {
  const word = element("span", { class: e.success ? "success-word" : "failure-word" }, e.success ? "success" : "failure");
  const pairs = [["return", e.episode_return], ["score", e.score], ["steps", e.steps], ["invalid", e.invalid], ["selected", e.selected],
    ["advantage", e.advantage === null ? null : signed(e.advantage)], ["nats/token", e.surprise === null ? null : number(e.surprise)], ["seed", e.seed]];
  return element("div", {}, element("p", { class: "task" }, word, `  ${e.task_type}  \u00b7  ${e.task_id}`), facts(pairs));
}

async function column(where, hits) {
  const [episodes, steps] = await Promise.all([ask("episodes", { run: where.run, file: where.file }), ask("steps", where)]);
  const e = episodes.find((each) => each.group === where.group && each.member === where.member);
  const list = element("ol", { class: "steps" });
  const mine = where.run === state.run && where.file === state.file && where.group === state.group && where.member === state.member;
  const shown = Math.min(state.step, steps.length - 1);
  for (const step of steps) {
    const found = mine && hits?.get(`${e.group}/${e.member}`)?.has(step.step);
    list.append(stepItem(step, step.step === shown, found, (n) => go({ step: n, at: null }), mine && step.step === shown ? state.at : null));
  }
  const title = `${where.run} \u00b7 ${fileTitle(where.file)} \u00b7 group ${where.group}, member ${where.member}`;
  return element("article", {}, element("h2", {}, title), summary(e), list);
}

async function showEpisode(place, hits) {
  const mine = { run: state.run, file: state.file, group: state.group, member: state.member };
  const same = await ask("same", mine);
  const columns = [column(mine, hits)];
  const other = parsePlace(state.beside);
  if (other) columns.push(column(other, null));
  const shown = await Promise.all(columns);
  const choice = element("select", { id: "beside", "aria-label": "beside" }, element("option", { value: "" }, same.length ? "nothing" : "no other episode of this task is kept"),
    ...same.map((each) => element("option", { value: placeText(each), selected: placeText(each) === state.beside }, besideTitle(each))));
  choice.addEventListener("change", () => go({ beside: choice.value || null }));
  const side = element("button", { type: "button", id: "side-by-side", onclick: () => go({ view: "group" }) }, "members side by side");
  place.replaceChildren(element("div", { class: "facts" }, element("label", {}, "beside ", choice), side), element("div", { class: "columns" }, ...shown));
  if (state.step) place.querySelector("li[aria-current=true]")?.scrollIntoView({ block: "nearest" }); // the first one stands below who and what
}

function besideTitle(each) {
  return `${each.same_seed ? "same seed" : "same task"} \u00b7 ${each.run} \u00b7 ${fileTitle(each.file)} \u00b7 member ${each.member} \u00b7 ${each.success ? "success" : "failure"}`;
}

async function showGroup(place, episodes) {
  const members = episodes.filter((e) => e.group === state.group);
  const steps = await Promise.all(members.map((e) => ask("steps", { run: state.run, file: state.file, group: e.group, member: e.member })));
  const head = element("tr", {}, element("th", { class: "numbers" }, "step"), ...members.map((e) => element("th", {},
    element("span", { class: e.success ? "success-word" : "failure-word" }, `member ${e.member}`), element("br"),
    `return ${e.episode_return}`, element("br"), e.advantage === null ? "" : `advantage ${signed(e.advantage)}`)));
  const rows = Array.from({ length: Math.max(0, ...steps.map((all) => all.length)) }, (_, n) => element("tr", {},
    element("td", { class: "numbers" }, String(n)),
    ...members.map((e, m) => {
      const step = steps[m][n];
      if (!step) return element("td");
      const open = () => go({ member: e.member, step: n, at: null, view: "steps" });
      const chosen = e.member === state.member && n === state.step;
      return element("td", { class: chosen ? "chosen" : null }, element("button", { type: "button", onclick: open }, step.action || "(no action)"), element("br"), flags(step));
    })));
  const back = element("button", { type: "button", onclick: () => go({ view: "steps" }) }, "one episode");
  place.replaceChildren(element("h2", {}, `Group ${state.group}: ${members[0]?.task_id ?? ""}`), back, element("div", { class: "wide" }, element("table", { class: "members" }, head, ...rows)));
}
