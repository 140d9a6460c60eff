// Where answers come from: the server that sent this page, or the blocks of data in it (a page that was written to a file).

const packed = new Map([...document.querySelectorAll("script[type='application/gzip']")].map((block) => [block.id, block]));
const unpacked = new Map();
const asked = new Map();
const ASKED = 60; // answers that are kept: steps that are walked to and fro

async function unpack(block) {
  if (!unpacked.has(block.id)) {
    const bytes = Uint8Array.from(atob(block.textContent), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    unpacked.set(block.id, new Response(stream).json());
  }
  return unpacked.get(block.id);
}

async function inFile(name, question) {
  if (name === "index") return unpack(packed.get("data-index"));
  const block = [...packed.values()].find((each) => each.dataset.run === question.run && each.dataset.key === question.file);
  if (!block) throw new Error(`${question.file} of ${question.run} is not in this file`);
  const data = await unpack(block);
  const episode = `${question.group}/${question.member}`;
  if (name === "search") return search(data.steps, question.text);
  return name === "steps" || name === "same" ? data[name][episode] ?? [] : data[name];
}

function search(steps, text) {
  const wanted = text.toLowerCase(), found = [];
  for (const [episode, all] of Object.entries(steps)) {
    const [group, member] = episode.split("/").map(Number);
    for (const step of all) {
      const texts = [step.action, step.response.join(""), step.observation.join("")];
      if (texts.some((each) => each.toLowerCase().includes(wanted))) found.push([group, member, step.step]);
    }
  }
  return found;
}

async function onServer(name, question) {
  const answer = await fetch(`${name}?${new URLSearchParams(question)}`);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

function ask(name, question = {}) {
  if (packed.size) return inFile(name, question);
  const key = `${name}?${new URLSearchParams(question)}`;
  if (name === "index") return onServer(name, question); // a run may go on
  if (!asked.has(key)) {
    const answer = onServer(name, question);
    answer.catch(() => asked.delete(key));
    asked.set(key, answer);
    if (asked.size > ASKED) asked.delete(asked.keys().next().value);
  }
  return asked.get(key);
}
