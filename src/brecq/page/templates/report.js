"use strict";
const layers = JSON.parse(document.getElementById("layers").textContent);
const network = document.querySelector(".network");
const details = document.getElementById("details");
const cells = [...document.querySelectorAll(".cell")];
const meaning = { sqnr: "small to large error, a fifth of the layers each", bits: "few to many bits", bytes: "small to large, a fifth of the layers each" };

function color(key) {
  network.dataset.color = key;
  document.getElementById("legend-text").textContent = meaning[key];
  for (const cell of cells) cell.dataset.level = cell.dataset[key];
}

function bars(counts, low) {
  const largest = Math.max(...counts, 1), width = 300 / counts.length;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 300 60");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `how often each weight code from ${low} to ${low + counts.length - 1} is used`);
  counts.forEach((count, i) => {
    const rect = document.createElementNS(svg.namespaceURI, "rect");
    const height = 60 * count / largest;
    Object.entries({ x: i * width, y: 60 - height, width: Math.max(width - 0.5, 0.5), height }).forEach(([k, v]) => rect.setAttribute(k, v));
    svg.append(rect);
  });
  const figure = document.createElement("figure"), axis = document.createElement("p");
  axis.className = "axis";
  const most = counts.indexOf(largest);
  for (const text of [low, `weight codes; most often ${low + most}: ${largest} times`, low + counts.length - 1]) {
    const label = document.createElement("span");
    label.textContent = text;
    axis.append(label);
  }
  figure.append(svg, axis);
  return figure;
}

function show(index) {
  const layer = layers[index];
  cells.forEach((cell) => cell.setAttribute("aria-pressed", cell.dataset.layer === String(index)));
  const title = document.createElement("h3");
  title.textContent = layer.name;
  const table = document.createElement("table");
  for (const [name, value] of layer.numbers) {
    const row = table.insertRow();
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = name;
    row.append(head);
    row.insertCell().textContent = value;
  }
  details.replaceChildren(title, table);
  if (layer.codes.length) details.append(bars(layer.codes, layer.low));
  details.hidden = false;
  details.focus({ preventScroll: true });
  details.scrollIntoView({ block: "nearest" });
}

document.querySelectorAll("input[name=color]").forEach((input) => input.addEventListener("change", () => color(input.value)));
cells.forEach((cell) => cell.addEventListener("click", () => show(Number(cell.dataset.layer))));
color("sqnr");
