// One search box above the first table marked "filterable": rows that lack one of the typed words are hidden.
const boxes = [...document.querySelectorAll(".filterable")];
if (boxes.length) {
  const rows = boxes.flatMap((box) => [...box.querySelectorAll("tbody tr")]);
  const text = rows.map((row) => row.textContent.toLowerCase());
  const bar = document.createElement("div");
  bar.className = "filter";
  bar.innerHTML = '<input type="search" placeholder="Filter, e.g. whiten" aria-label="Filter the table"><output></output>';
  const [input, output] = bar.children;
  const show = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row, k) => (row.hidden = !words.every((word) => text[k].includes(word))));
    output.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  };
  input.addEventListener("input", show);
  input.value = new URLSearchParams(location.search).get("filter") || "";
  (boxes[0].closest("section section") || boxes[0]).before(bar);
  show();
}
