// Elements and tokens. Text gets into the page as text alone: nothing here, and nothing elsewhere in this script, makes markup of a string.

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") made.addEventListener("click", value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined)); // strings become text nodes
  return made;
}

const SHADES = [[0.01, "s4"], [0.05, "s3"], [0.2, "s2"], [0.5, "s1"]]; // probability below, class

function shade(p) {
  return (SHADES.find(([bound]) => p < bound) ?? [0, ""])[1];
}

const probability = (p) => (p < 0.001 ? p.toExponential(1) : String(p));

// What is known of the token: p, entropy, silenced, copied.
function token(text, { p = null, entropy = null, silenced, copied }, chosen) {
  const classes = ["t", p === null ? "" : shade(p), silenced ? "silenced" : "", copied ? "copied" : "", chosen ? "at" : ""];
  const facts = [p === null ? null : `p ${probability(p)}`, entropy === null ? null : `entropy ${entropy}`, silenced ? "silenced: carries no loss" : null,
    copied ? "a copier says it" : null];
  return element("span", { class: classes.filter(Boolean).join(" "), title: facts.filter(Boolean).join(", ") || null }, text);
}

// `known`: the same, of each token or null.
function tokens(pieces, known, chosen = null) {
  const of = (n) => Object.fromEntries(Object.entries(known).map(([name, values]) => [name, values ? values[n] : null]));
  return element("div", { class: "tokens" }, ...pieces.map((text, n) => token(text, of(n), n === chosen)));
}

// Places of the tokens that were expected least, the least probable first.
function leastProbable(step, count) {
  if (!step.observation_p) return [];
  return step.observation_p.map((p, at) => ({ p, at })).sort((a, b) => a.p - b.p).slice(0, count).filter((each) => each.p < 0.5);
}

function legend() {
  const names = ["p \u2265 0.5 ", "p < 0.5", "p < 0.2", "p < 0.05", "p < 0.01"], samples = [0.9, 0.4, 0.1, 0.03, 0.001];
  const shown = samples.flatMap((p, n) => [token(names[n], { p }), "  "]);
  return [...shown, token("silenced", { silenced: true }), " by clipping: probable enough to carry no loss  ", token("copied", { copied: true }), " what a copier of the previous observation says"];
}

function number(value, digits = 2) {
  return value === null || value === undefined ? "\u2013" : value.toFixed(digits);
}

function signed(value) {
  return `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(2)}`;
}

function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined);
  return element("div", { class: "facts" }, ...shown.map(([name, value]) => element("span", {}, `${name} `, element("b", {}, String(value)))));
}
