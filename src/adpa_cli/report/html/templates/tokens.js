for (const view of document.querySelectorAll(".tokens")) {
  const answer = view.querySelector(".answer"), here = view.querySelector(".here");
  const data = JSON.parse(view.querySelector(".token-data").textContent);
  const all = answer.children, number = new Map();
  for (let t = 0; t < all.length; t++) number.set(all[t], t);
  const element = (name, text, kind) => {
    const made = document.createElement(name);
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const words = (value, signed) => value === null || value === undefined ? "–"
    : (value > 0 && signed ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(2);
  let chosen = 0, marked = null;
  const show = (t) => {
    const token = data.tokens[t];
    if (!token) return;
    if (marked) marked.classList.remove("on");
    marked = all[t];
    marked.classList.add("on");
    const pair = token.r.length > 1;
    const facts = element("dl", "", "facts");
    data.metrics.forEach(([name, signed], n) => facts.append(element("dt", name), element("dd", words(token.v[n], signed))));
    facts.append(element("dt", "outside the top " + data.top),
      element("dd", (100 * token.r[0]).toFixed(1) + " %" + (pair ? " (reference " + (100 * token.r[1]).toFixed(1) + " %)" : "")));
    const table = element("table", ""), head = table.createTHead().insertRow(), body = table.createTBody();
    for (const name of ["token", "log p", ...(pair ? ["reference", "advantage"] : [])]) head.append(element("th", name, name === "token" ? "" : "n"));
    for (const [word, logp, reference, advantage] of token.k) {
      const row = body.insertRow();
      if (word === token.i) row.className = "taken";
      row.append(element("td", data.words[word], "mono"), element("td", words(logp), "n"));
      if (pair) row.append(element("td", words(reference), "n"), element("td", words(advantage, true), "n"));
    }
    here.replaceChildren(element("h3", "Token " + (t + 1).toLocaleString("en") + " of " + data.tokens.length.toLocaleString("en") + ": " + data.words[token.i], "mono"), facts, table);
  };
  const choose = (t, scroll) => {
    chosen = Math.max(0, Math.min(all.length - 1, t));
    show(chosen);
    if (scroll) all[chosen].scrollIntoView({ block: "nearest" });
  };
  const beside = (step) => {
    const [box] = all[chosen].getClientRects(), line = parseFloat(getComputedStyle(answer).lineHeight);
    if (!box) return chosen;
    for (let lines = 1; lines < 4; lines++) {
      const found = document.elementFromPoint(box.left + 2, box.top + box.height / 2 + step * lines * line);
      if (number.has(found)) return number.get(found);
    }
    return chosen + step;
  };
  answer.addEventListener("pointerover", (event) => number.has(event.target) && show(number.get(event.target)));
  answer.addEventListener("pointerleave", () => show(chosen));
  answer.addEventListener("click", (event) => number.has(event.target) && choose(number.get(event.target)));
  answer.addEventListener("focus", () => show(chosen));
  answer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = {
      ArrowRight: () => chosen + 1, ArrowLeft: () => chosen - 1, Home: () => 0, End: () => all.length - 1,
      PageDown: () => chosen + 100, PageUp: () => chosen - 100, ArrowDown: () => beside(1), ArrowUp: () => beside(-1),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    choose(moves[event.key](), true);
  });
  if (all.length) show(0);
}
