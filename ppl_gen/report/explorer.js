"use strict";
// The explorer of a run's page: E[x | z] for a z that is moved by hand. What it reads is `explorer.json`.

// The decoder ----------------------------------------------------------------------------------------------------

const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const floats = (text) => new Float32Array(bytes(text).buffer);
const integers = (text) => new Int8Array(bytes(text).buffer);

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

// Abramowitz and Stegun (1964), 7.1.6: no term cancels another.
function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x, sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= 2 * x * x / (2 * n + 1);
  return 2 / Math.sqrt(Math.PI) * Math.exp(-x * x) * sum;
}

// The mean of its pixel.
function continuousBernoulli(logit) {
  return Math.abs(logit) < 1e-3 ? 0.5 + logit / 12 : -1 / Math.expm1(-logit) - 1 / logit;
}

const ACTIVATIONS = {
  "identity": (x) => x,
  "relu": (x) => Math.max(x, 0),
  "tanh": Math.tanh,
  "softplus": (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))),
  "sigmoid": sigmoid,
  "elu": (x, slope) => x > 0 ? x : slope * Math.expm1(x),
  "gelu": (x) => x / 2 * (1 + erf(x / Math.SQRT2)),
  "silu": (x) => x * sigmoid(x),
  "leaky-relu": (x, slope) => x > 0 ? x : slope * x,
  "continuous-bernoulli": continuousBernoulli,
};

// The function from z to E[x | z], both Float64Array.
function rgba(values, size) {  // red, green, blue and opacity of each pixel; grey is ink on paper
  const color = values.length === 3 * size, grey = (index) => 255 - 255 * values[index];
  const channel = (index, which) => color ? 255 * values[which * size + index] : grey(index);
  return Array.from({ length: 4 * size }, (_, i) => i % 4 === 3 ? 255 : channel(Math.floor(i / 4), i % 4));
}

function decoder(written) {
  const layers = written.map((layer) => ({
    codes: integers(layer.codes), scales: floats(layer.scales), bias: floats(layer.bias),
    activation: ACTIVATIONS[layer.activation], slope: layer.slope,
  }));
  return (z) => layers.reduce(forward, z);
}

function forward(input, { codes, scales, bias, activation, slope }) {
  const output = new Float64Array(bias.length);
  for (let row = 0, next = 0; row < output.length; row++) {
    let sum = 0;
    for (let column = 0; column < input.length; column++) sum += codes[next++] * input[column];
    output[row] = activation(scales[row] * sum + bias[row], slope);
  }
  return output;
}

// Many z, [size, count] in the file.
function cloud({ codes, scales }) {
  const values = integers(codes), factors = floats(scales), count = values.length / factors.length;
  return { count, at: (unit, index) => factors[unit] * values[unit * count + index] };
}

// The page -------------------------------------------------------------------------------------------------------

function element(name, attributes = {}, ...content) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...content);
  return made;
}

function explore(place, data) {
  const { order, low, high, labels } = data, size = order.length;
  const decode = decoder(data.layers), draws = cloud(data.draws), means = data.means && cloud(data.means);
  const points = means || draws, kinds = [...new Set(labels || [])].sort((a, b) => a - b);
  const z = new Float64Array(size), units = order.slice(0, 2);  // the plane's: across, up
  const name = (unit) => `z[${unit}]`, clip = (unit, value) => Math.min(high[unit], Math.max(low[unit], value));

  // What is seen
  const { width, height } = data;
  const image = element("canvas", { class: "image", width, height, role: "img", "aria-label": "E[x | z]" });
  const status = element("p", { class: "status", role: "status" });
  const map = element("canvas", { "aria-hidden": "true" });
  const handle = element("div", { class: "handle", role: "slider", tabindex: "0" });
  handle.setAttribute("aria-roledescription", "point in a plane");
  const plane = element("div", { class: "plane" }, map, handle);
  const selects = units.map((_, axis) => {
    const select = element("select", {}, ...order.map((unit) => element("option", { value: unit }, name(unit))));
    select.addEventListener("change", () => choose(axis, Number(select.value)));
    return select;
  });
  const sliders = order.map((unit) => {
    const input = element("input", { type: "range", min: low[unit], max: high[unit], step: 0.01 });
    input.addEventListener("input", () => move(unit, Number(input.value)));
    const value = element("span", { class: "number", "aria-hidden": "true" });
    const row = element("label", { class: "unit" }, element("span", {}, name(unit)), input, value);
    return { unit, input, value, row };
  });
  const rows = sliders.map(({ row }) => row);
  const rest = element("details", {}, element("summary", {}, "more units"), ...rows.slice(12));
  const button = (text, act) => {
    const made = element("button", { type: "button" }, text);
    made.addEventListener("click", act);
    return made;
  };
  const buttons = [
    button("z = 0", () => jump(() => 0)),
    button("z from the prior", () => take(draws, Math.floor(Math.random() * draws.count))),
  ];
  if (means) buttons.push(button("nearest test image", () => take(means, nearest().index)));
  place.append(
    element("div", { class: "seen" }, image, status),
    element("div", {}, plane, element("div", { class: "axes" },
      element("label", {}, "across ", selects[0]), element("label", {}, "up ", selects[1]))),
    element("div", {},
      element("div", { class: "buttons" }, ...buttons), ...rows.slice(0, 12), ...(size > 12 ? [rest] : [])),
  );

  // What moves it
  function move(unit, value) { z[unit] = clip(unit, value); update(); }
  function jump(value) { for (let unit = 0; unit < size; unit++) move(unit, value(unit)); }
  function take(from, index) { jump((unit) => from.at(unit, index)); }
  function choose(axis, unit) {
    if (units[1 - axis] === unit) units[1 - axis] = units[axis];
    units[axis] = unit;
    arrange();
  }
  function drag(event) {
    const box = map.getBoundingClientRect();
    const shares = [(event.clientX - box.left) / box.width, (box.bottom - event.clientY) / box.height];
    units.forEach((unit, axis) => move(unit, low[unit] + shares[axis] * (high[unit] - low[unit])));
  }
  let held = null;  // the pointer, mouse or finger, that holds the point
  plane.addEventListener("pointerdown", (event) => {
    held = event.pointerId;
    plane.setPointerCapture(held);
    drag(event);
    handle.focus({ preventScroll: true });
    event.preventDefault();  // which would select text, or take the focus away
  });
  plane.addEventListener("pointermove", (event) => { if (event.pointerId === held) drag(event); });
  for (const end of ["pointerup", "pointercancel"]) plane.addEventListener(end, () => { held = null; });
  handle.addEventListener("keydown", (event) => {
    const keys = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowDown: [1, -1], ArrowUp: [1, 1] };
    if (!(event.key in keys)) return;
    const [axis, sign] = keys[event.key], unit = units[axis];
    move(unit, z[unit] + sign * (event.shiftKey ? 0.1 : 0.02) * (high[unit] - low[unit]));
    event.preventDefault();
  });

  // What follows from z
  let waiting = false, resting = 0;
  function update() {  // many moves, one picture
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
    clearTimeout(resting);
    resting = setTimeout(tell, 400);
  }
  function draw() {
    waiting = false;
    const context = image.getContext("2d"), pixels = context.createImageData(width, height);
    pixels.data.set(rgba(decode(z), width * height));  // which rounds and clamps
    context.putImageData(pixels, 0, 0);
    for (const { unit, input, value } of sliders) {
      input.value = z[unit];
      value.textContent = z[unit].toFixed(2).replace("-", "−");
    }
    const [across, up] = units.map((unit) => (z[unit] - low[unit]) / (high[unit] - low[unit]));
    handle.style.left = `${100 * across}%`;
    handle.style.bottom = `${100 * up}%`;
    handle.setAttribute("aria-valuenow", z[units[0]].toFixed(2));
    handle.setAttribute("aria-valuetext", units.map((unit) => `${name(unit)} ${z[unit].toFixed(2)}`).join(", "));
  }
  function nearest() {
    let index = 0, least = Infinity;
    for (let other = 0; other < points.count; other++) {
      let distance = 0;
      for (let unit = 0; unit < size; unit++) distance += (points.at(unit, other) - z[unit]) ** 2;
      if (distance < least) [index, least] = [other, distance];
    }
    return { index, distance: Math.sqrt(least) };
  }
  function tell() {
    const { index, distance } = nearest(), which = labels ? `${index} (label ${labels[index]})` : index;
    status.textContent = `|z| = ${Math.hypot(...z).toFixed(2)}`;
    if (means) {
      status.append(`; the nearest posterior mean, of test image ${which}, is ${distance.toFixed(2)} away`);
    }
  }

  // What follows from the plane's units, and from size and colours of the page
  function arrange() {
    selects.forEach((select, axis) => { select.value = units[axis]; });
    for (const { unit, row } of sliders) row.hidden = units.includes(unit);
    handle.setAttribute("aria-label", `z in the plane of ${units.map(name).join(" and ")}`);
    handle.setAttribute("aria-valuemin", low[units[0]]);
    handle.setAttribute("aria-valuemax", high[units[0]]);
    sketch();
    update();
  }
  function sketch() {
    const side = map.clientWidth, scale = window.devicePixelRatio || 1, context = map.getContext("2d");
    map.width = map.height = Math.round(side * scale);
    context.scale(scale, scale);
    const [right, top] = units.map((unit) => (value) => side * (value - low[unit]) / (high[unit] - low[unit]));
    const ink = getComputedStyle(place).color, dark = matchMedia("(prefers-color-scheme: dark)").matches;
    context.strokeStyle = context.fillStyle = ink;
    context.globalAlpha = 0.35;
    context.beginPath();
    context.moveTo(right(0), 0);
    context.lineTo(right(0), side);
    context.moveTo(0, side - top(0));
    context.lineTo(side, side - top(0));
    context.stroke();
    context.globalAlpha = labels ? 0.85 : 0.4;
    context.font = "600 10px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let index = 0; index < points.count; index++) {
      const x = right(points.at(units[0], index)), y = side - top(points.at(units[1], index));
      if (labels) {
        const hue = 360 * kinds.indexOf(labels[index]) / kinds.length;
        context.fillStyle = `hsl(${hue} 70% ${dark ? 70 : 35}%)`;
        context.fillText(labels[index], x, y);
      } else context.fillRect(x - 1, y - 1, 2, 2);
    }
    context.globalAlpha = 0.8;
    context.fillStyle = ink;
    context.font = "11px system-ui, sans-serif";
    const write = (limit, x, y, align) => {
      context.textAlign = align;
      context.fillText(`${limit}`.replace("-", "−"), x, y);
    };
    write(low[units[0]], 4, side - top(0) + 9, "left");
    write(high[units[0]], side - 4, side - top(0) + 9, "right");
    write(low[units[1]], right(0) + 4, side - 9, "left");
    write(high[units[1]], right(0) + 4, 9, "left");
    context.font = "600 12px system-ui, sans-serif";
    context.globalAlpha = 1;
    context.strokeStyle = getComputedStyle(document.body).backgroundColor;  // around the names, which lie over labels
    context.lineWidth = 4;
    const label = (text, x, y) => {
      context.textAlign = "right";
      context.strokeText(text, x, y);
      context.fillText(text, x, y);
    };
    label(`${name(units[0])} →`, side - 4, side - top(0) - 10);
    label(`${name(units[1])} ↑`, right(0) - 5, 10);
  }
  new ResizeObserver(sketch).observe(plane);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", sketch);
  take(points, 0);
  arrange();
  return { z, units, decode };
}

const place = typeof document === "object" && document.getElementById("explorer");
const explorer = place && explore(place, JSON.parse(document.getElementById("explorer-data").textContent));
