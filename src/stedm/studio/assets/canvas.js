// A canvas for label maps: what is painted are class numbers, never blended colours. It is used by pointer and by keys.
const root = element.querySelector(".lc");
const canvas = root.querySelector("canvas");
const said = root.querySelector(".lc-said");
const widthInput = root.querySelector(".lc-size");
const colours = JSON.parse(root.dataset.colours);
const names = JSON.parse(root.dataset.names);
const UNKNOWN = 255;
const HISTORY = 50;
let size = 1, labels = new Uint8Array(1), sent = null;
let label = 0, tool = "brush", start = null, painting = false, held = false, focused = false;
let cursor = { x: 0, y: 0 };
let past = [];

const encode = () => {
  let bytes = "";
  for (let k = 0; k < labels.length; k += 8192) bytes += String.fromCharCode(...labels.subarray(k, k + 8192));
  return JSON.stringify({ size, labels: btoa(bytes) });
};
const load = (text) => {
  if (!text || text === sent) return;
  const given = JSON.parse(text);
  if (given.size === size) remember(); else past = [];
  size = given.size;
  labels = Uint8Array.from(atob(given.labels), (letter) => letter.charCodeAt(0));
  sent = text;
  cursor = { x: size >> 1, y: size >> 1 };
  draw();
};
const remember = () => { past.push(labels.slice()); if (past.length > HISTORY) past.shift(); };
const send = () => { sent = encode(); props.value = sent; };
const brush = () => Number(widthInput.value);
const colourOf = (value) => (value === UNKNOWN ? "#ffffff" : colours[value % colours.length]);

const draw = () => {
  const zoom = Math.max(1, Math.round(512 / size));
  canvas.width = canvas.height = size * zoom;
  const context = canvas.getContext("2d");
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; ) {  // runs of one label: fewer rectangles
      let end = x + 1;
      while (end < size && labels[y * size + end] === labels[y * size + x]) end++;
      context.fillStyle = colourOf(labels[y * size + x]);
      context.fillRect(x * zoom, y * zoom, (end - x) * zoom, zoom);
      x = end;
    }
  }
  if (!focused) return;
  const width = tool === "brush" ? brush() : 1;
  for (const [colour, line] of [["#ffffff", 4], ["#000000", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.beginPath();
    context.arc((cursor.x + 0.5) * zoom, (cursor.y + 0.5) * zoom, Math.max(3, (width * zoom) / 2), 0, 2 * Math.PI);
    context.stroke();
    if (start) context.strokeRect(...box(start, cursor).map((value) => value * zoom));
  }
};
const box = (a, b) => [Math.min(a.x, b.x), Math.min(a.y, b.y), Math.abs(a.x - b.x) + 1, Math.abs(a.y - b.y) + 1];
const put = (x, y) => { if (x >= 0 && y >= 0 && x < size && y < size) labels[y * size + x] = label; };
const dab = ({ x, y }) => {
  const radius = brush() / 2, reach = Math.ceil(radius);
  for (let dy = -reach; dy <= reach; dy++)
    for (let dx = -reach; dx <= reach; dx++)
      if (dx * dx + dy * dy <= radius * radius) put(x + dx, y + dy);
};
const stroke = (from, to) => {
  const steps = Math.max(1, Math.abs(to.x - from.x), Math.abs(to.y - from.y));
  for (let k = 0; k <= steps; k++)
    dab({ x: Math.round(from.x + ((to.x - from.x) * k) / steps), y: Math.round(from.y + ((to.y - from.y) * k) / steps) });
};
const shape = (a, b) => {
  const [left, top, width, height] = box(a, b);
  for (let y = top; y < top + height; y++)
    for (let x = left; x < left + width; x++) {
      const u = (2 * (x + 0.5 - left)) / width - 1, v = (2 * (y + 0.5 - top)) / height - 1;
      if (tool === "rectangle" || u * u + v * v <= 1) put(x, y);
    }
};
const fill = ({ x, y }) => {
  const old = labels[y * size + x], open = [y * size + x];
  if (old === label) return;
  while (open.length) {
    const at = open.pop();
    if (labels[at] !== old) continue;
    labels[at] = label;
    if (at % size) open.push(at - 1);
    if ((at + 1) % size) open.push(at + 1);
    if (at >= size) open.push(at - size);
    if (at < size * (size - 1)) open.push(at + size);
  }
};
const tell = (text) => { said.textContent = text; };
const place = () => `column ${cursor.x + 1}, row ${cursor.y + 1}: ${names[labels[cursor.y * size + cursor.x]] ?? "unknown"}`;
const choose = (attribute, value) => {
  for (const button of root.querySelectorAll(`[data-${attribute}]`))
    button.setAttribute("aria-pressed", String(button.dataset[attribute] === String(value)));
};
const setLabel = (value) => { label = value; choose("label", value); tell(`painting ${names[value] ?? "unknown"}`); };
const setTool = (value) => { tool = value; start = null; choose("tool", value); draw(); };
const setWidth = (value) => {
  widthInput.value = value;
  root.querySelector(".lc-width").textContent = widthInput.value;
  draw();
};
const undo = () => { if (past.length) { labels = past.pop(); send(); draw(); tell("undone"); } };
const apply = () => {  // one press of Space, or of the pointer's button
  if (tool === "brush" || tool === "fill") {
    remember();
    if (tool === "brush") dab(cursor); else fill(cursor);
  } else if (start) {
    remember();
    shape(start, cursor);
    start = null;
  } else {
    start = { ...cursor };
    tell("first corner set; move, then Space again");
    return draw();
  }
  send();
  draw();
  tell(place());
};
const at = (event) => {
  const area = canvas.getBoundingClientRect();
  const cell = (value, length) => Math.max(0, Math.min(size - 1, Math.floor((value / length) * size)));
  return { x: cell(event.clientX - area.left, area.width), y: cell(event.clientY - area.top, area.height) };
};

root.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.label) setLabel(Number(button.dataset.label));
  if (button.dataset.tool) setTool(button.dataset.tool);
  if (button.dataset.do === "undo") undo();
  if (button.dataset.do === "clear") { remember(); labels.fill(label); send(); draw(); tell(`all ${names[label] ?? "unknown"}`); }
});
widthInput.addEventListener("input", () => setWidth(widthInput.value));
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  cursor = at(event);
  painting = true;
  apply();
});
canvas.addEventListener("pointermove", (event) => {
  if (!painting) return;
  const from = cursor;
  cursor = at(event);
  if (tool === "brush") stroke(from, cursor);
  draw();
});
canvas.addEventListener("pointerup", (event) => {
  if (!painting) return;
  painting = false;
  cursor = at(event);
  if (start) apply(); else { send(); draw(); }
});
canvas.addEventListener("focus", () => { focused = true; draw(); });
canvas.addEventListener("blur", () => { focused = held = false; draw(); });
canvas.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const move = moves[event.key];
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (move) {
    const step = event.shiftKey ? 1 : Math.max(1, Math.floor(brush() / 2)), from = cursor;
    const within = (value) => Math.max(0, Math.min(size - 1, value));
    cursor = { x: within(cursor.x + move[0] * step), y: within(cursor.y + move[1] * step) };
    if (held && tool === "brush") { stroke(from, cursor); send(); }
    draw();
    tell(place());
  } else if (event.key === " " || event.key === "Enter") apply();
  else if (event.key === "d" || event.key === "D") { held = !held; if (held && tool === "brush") apply(); tell(held ? "brush down" : "brush up"); }
  else if (event.key === "z" || event.key === "Z") undo();
  else if (event.key === "[") setWidth(brush() - 1);
  else if (event.key === "]") setWidth(brush() + 1);
  else if (event.key >= "1" && event.key <= "9" && Number(event.key) <= colours.length) setLabel(Number(event.key) - 1);
  else return;
  event.preventDefault();
});
watch("value", () => load(props.value));
load(props.value);
