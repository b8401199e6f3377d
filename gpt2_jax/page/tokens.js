// A text's tokens, coloured; the one that is clicked, or reached by the arrow keys, shows its alternatives.
// Everything goes in as text nodes.
const root = element.querySelector(".look");
const WAYS = {
  surprisal: { label: "Surprisal", strength: (t) => t.surprisal / 12, words: (t) => `${t.surprisal.toFixed(1)} bits` },
  rank: { label: "Rank", strength: (t) => Math.log10(t.rank) / 3, words: (t) => `rank ${t.rank}` },
  entropy: { label: "Entropy", strength: (t) => t.entropy / 10, words: (t) => `entropy ${t.entropy.toFixed(1)} bits` },
};
const ENDS = { surprisal: ["0 bits", "12 or more"], rank: ["1", "1,000 or more"], entropy: ["0 bits", "10 or more"] };
let way = "surprisal";
let chosen = 0;

function make(tag, name, parent, words) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (words !== undefined) node.textContent = words;
  parent.append(node);
  return node;
}

function percent(p) {
  return p >= 0.0995 ? `${(100 * p).toFixed(0)} %` : p >= 0.001 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %";
}

function paint(nodes, tokens) {
  tokens.forEach((token, i) => {
    const strength = Math.max(0, Math.min(1, WAYS[way].strength(token)));
    nodes[i].style.setProperty("--strength", `${Math.round(85 * strength)}%`);
    nodes[i].setAttribute("aria-label", `${token.label}: ${WAYS[way].words(token)}`);
  });
}

function alternatives(panel, token) {
  panel.replaceChildren();
  make("h3", "", panel, `In the place of “${token.label}”`);
  const facts = `${token.surprisal.toFixed(2)} bits, rank ${token.rank.toLocaleString("en")}, entropy ${token.entropy.toFixed(2)} bits`;
  make("p", "note", panel, facts);
  const table = make("table", "", panel);
  const head = make("tr", "", make("thead", "", table));
  ["Token", "Probability"].forEach((words) => (make("th", "", head, words).scope = "col"));
  const body = make("tbody", "", table);
  const rows = [...token.top];
  if (!rows.some((row) => row.chosen)) {
    rows.push({ label: token.label, probability: 2 ** -token.surprisal, chosen: true });
  }
  rows.forEach((row) => {
    const line = make("tr", row.chosen ? "chosen" : "", body);
    make("td", "", line, row.label);
    const cell = make("td", "", line);
    make("span", "bar", cell).style.width = `${Math.max(1, 100 * row.probability)}px`;
    make("span", "", cell, percent(row.probability) + (row.chosen ? "  in the text" : ""));
  });
}

function show() {
  root.replaceChildren();
  const value = props.value;
  if (!value || !value.tokens) {
    const empty = make("div", "tokens empty", root);
    empty.dataset.empty = "The text appears here, coloured.";
    return;
  }
  chosen = 0;
  const tokens = value.tokens;
  const bar = make("div", "legend", root);
  const ways = make("div", "ways", bar);
  ways.setAttribute("role", "group");
  ways.setAttribute("aria-label", "Colour by");
  const scale = make("div", "scale", bar);
  const summary = `${tokens.length} tokens, perplexity ${value.perplexity} a token`;
  make("span", "note", bar, summary).setAttribute("role", "status");
  const sides = make("div", "tokens-sides", root);
  const text = make("div", "tokens", sides);
  text.setAttribute("role", "group");
  text.setAttribute("aria-label", "Tokens; arrow keys go from one to the next");
  const panel = make("div", "alternatives", sides);
  panel.setAttribute("aria-live", "polite");
  const nodes = tokens.map((token, i) => {
    const node = make("span", "token", text, token.text); // a button would not break over lines
    node.setAttribute("role", "button");
    node.dataset.i = i;
    node.tabIndex = i ? -1 : 0;
    return node;
  });
  function choose(i, focus) {
    nodes[chosen].tabIndex = -1;
    nodes[chosen].removeAttribute("aria-pressed");
    chosen = Math.max(0, Math.min(nodes.length - 1, i));
    nodes[chosen].tabIndex = 0;
    nodes[chosen].setAttribute("aria-pressed", "true");
    if (focus) nodes[chosen].focus();
    alternatives(panel, tokens[chosen]);
  }
  text.addEventListener("click", (event) => {
    const node = event.target.closest(".token");
    if (node) choose(Number(node.dataset.i), false);
  });
  text.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -tokens.length, End: tokens.length };
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(Number(event.target.dataset.i), true);
    } else if (event.key in steps) {
      event.preventDefault();
      choose(chosen + steps[event.key], true);
    }
  });
  function colour(name) {
    way = name;
    [...ways.children].forEach((node) => node.setAttribute("aria-pressed", String(node.dataset.way === name)));
    scale.replaceChildren();
    make("span", "", scale, ENDS[name][0]);
    make("span", "ramp", scale);
    make("span", "", scale, ENDS[name][1]);
    paint(nodes, tokens);
  }
  Object.entries(WAYS).forEach(([name, { label }]) => {
    const node = make("button", "way", ways, label);
    node.type = "button";
    node.dataset.way = name;
    node.addEventListener("click", () => colour(name));
  });
  colour(way);
  choose(0, false);
}

watch("value", show);
show();
