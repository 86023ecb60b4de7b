const filter = document.querySelector("#words"), order = document.querySelector("#order");
if (filter) {
  const list = document.querySelector("#samples"), all = [...list.children], count = document.querySelector("#count");
  const update = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const one of all) {
      const text = one.textContent.toLowerCase();
      one.hidden = !words.every((word) => text.includes(word));
      shown += !one.hidden;
    }
    count.textContent = shown + " of " + all.length;
  };
  order.addEventListener("change", () => {
    const by = order.value;
    const sorted = [...all].sort((a, b) => by === "gap" ? b.dataset.gap - a.dataset.gap : a.dataset.place - b.dataset.place);
    list.append(...sorted);
  });
  filter.addEventListener("input", update);
  update();
}
