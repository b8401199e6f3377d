// Cards of texts that grow. Everything goes in as text nodes: what a model writes is never read as HTML.
const shown = element.querySelector(".cards");

function make(tag, name, parent) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  parent.append(node);
  return node;
}

function button(words, parent, act) {
  const node = make("button", "", parent);
  node.type = "button";
  node.textContent = words;
  node.addEventListener("click", act);
  return node;
}

function newCard() {
  const card = make("article", "card", shown);
  const head = make("header", "", card);
  card.title_ = make("span", "seed", head);
  card.note = make("span", "note", head);
  card.note.setAttribute("role", "status");
  const text = make("div", "text", card);
  text.tabIndex = 0;
  text.setAttribute("role", "group");
  card.text = text;
  card.prompt = make("span", "prompt", text);
  card.completion = make("span", "completion", text);
  const foot = make("footer", "", card);
  const copy = button("Copy", foot, async () => {
    await navigator.clipboard.writeText(card.value.prompt + card.value.completion);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  if (shown.dataset.reuse !== "no") {
    button("Use this seed again", foot, () => trigger("reuse", { seed: card.value.seed }));
    button("See probabilities", foot, () => trigger("look", { text: card.value.prompt + card.value.completion }));
  }
  return card;
}

function show() {
  const values = Array.isArray(props.value) ? props.value : [];
  shown.classList.toggle("empty", !values.length);
  while (shown.children.length > values.length) shown.lastChild.remove();
  values.forEach((value, i) => {
    const card = shown.children[i] || newCard();
    card.value = value;
    card.title_.textContent = `seed ${value.seed}`;
    card.note.textContent = value.done ? value.note : "writing";
    card.classList.toggle("growing", !value.done);
    card.setAttribute("aria-busy", String(!value.done));
    card.text.setAttribute("aria-label", `Text of seed ${value.seed}`);
    card.prompt.textContent = value.prompt;
    card.completion.textContent = value.completion;
  });
}

watch("value", show);
show();
