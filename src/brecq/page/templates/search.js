"use strict";
const points = JSON.parse(document.getElementById("points").textContent);
const cells = [...document.querySelectorAll(".cell")];
const choices = [...document.querySelectorAll("input[name=point]")];
const marks = [...document.querySelectorAll(".point")];

function show(index) {
  points[index].forEach(([weights, inputs, level], i) => {
    cells[i].dataset.level = level;
    cells[i].querySelector(".bits").textContent = `${weights > 8 ? "float" : weights} / ${inputs > 8 ? "float" : inputs}`;
  });
  choices[index].checked = true;
  marks.forEach((mark) => mark.classList.toggle("picked", Number(mark.dataset.point) === index));
}

choices.forEach((input, i) => input.addEventListener("change", () => show(i)));
marks.forEach((mark) => mark.addEventListener("click", () => show(Number(mark.dataset.point))));
show(0);
