"use strict";
// Draws the figures of a report from the JSON beside them, and makes its tables sortable. All text is set as text.
(() => {
  const DATA = JSON.parse(document.getElementById("figures").textContent);
  for (const chart of Object.values(DATA).flat().filter(chart => chart.series)) {
    for (const axis of [chart.x, chart.y]) axis.kind ??= "count";
    for (const series of chart.series) Object.assign(series, { marker: "o" }, series.look, { name: series.look.label });
  }
  const TIP = document.getElementById("tip"), SAID = document.getElementById("said");
  const DARK = matchMedia("(prefers-color-scheme: dark)");
  const ROW = 20, CELL = 20, SLANTED = 160, MOST_BANDS = 4, NEAR = 30; // pixels, but for MOST_BANDS

  // Numbers as people read them ------------------------------------------------------------------------------------
  const minus = text => text.replace("-", "−");
  const units = (value, steps) => {
    const [size, unit] = steps.find(([size]) => Math.abs(value) >= 0.9995 * size) || steps[steps.length - 1];
    return minus(+(value / size).toPrecision(3) + " " + unit);
  };
  const BYTES = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]], SECONDS = [[60, "min"], [1, "s"]];
  const hours = minutes => Math.floor(minutes / 60) + " h" + (minutes % 60 ? ` ${minutes % 60} min` : "");
  function said(value, kind) {
    if (value == null) return "not measured";
    if (kind === "bytes") return value ? units(value, BYTES) : "0";
    if (kind === "seconds" && value >= 3600) return hours(Math.round(value / 60));
    if (kind === "seconds") return value ? units(value, SECONDS) : "0";
    if (kind === "count") return minus(Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(4)));
    const rounded = +value.toFixed(3) || 0; // no −0
    return minus((kind === "signed" && rounded > 0 ? "+" : "") + rounded.toFixed(3));
  }
  const tick = (value, kind) => (["score", "signed", "norm"].includes(kind) ? minus(String(+value.toFixed(4))) : said(value, kind));

  // Elements -------------------------------------------------------------------------------------------------------
  function add(parent, name, attributes = {}, text = "") {
    const svg = parent.namespaceURI.endsWith("svg") || name === "svg";
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    return parent.appendChild(made);
  }
  const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const ruler = document.createElement("canvas").getContext("2d");
  ruler.font = "11px system-ui, sans-serif";
  const wide = text => ruler.measureText(text).width;
  const widest = texts => Math.max(...texts.map(wide));
  function short(text, room) {
    if (wide(text) <= room) return text;
    let kept = text.length - 1;
    while (kept > 2 && wide(text.slice(0, kept) + "…") > room) kept--;
    return text.slice(0, kept) + "…";
  }

  function tell(event, text) {
    TIP.textContent = text;
    TIP.hidden = false;
    const left = Math.min(event.pageX + 14, scrollX + document.documentElement.clientWidth - TIP.offsetWidth - 8);
    const above = event.clientY + TIP.offsetHeight + 24 > innerHeight;
    TIP.style.left = Math.max(4, left) + "px";
    TIP.style.top = event.pageY + (above ? -TIP.offsetHeight - 12 : 16) + "px";
  }
  const hush = () => { TIP.hidden = true; };

  // Hovering, touching and arrow keys all choose one of the spots {x, y, text} of a chart.
  function pointing(element, spots, find, show) {
    let chosen = -1;
    const box = () => element.getBoundingClientRect();
    const choose = (index, event) => {
      chosen = index;
      const spot = spots[index];
      show(spot);
      const at = box();
      tell(event || { pageX: at.left + scrollX + spot.x, pageY: at.top + scrollY + spot.y, clientY: at.top + spot.y }, spot.text);
      if (!event) SAID.textContent = spot.text;
    };
    const move = event => {
      const at = box(), index = find(event.clientX - at.left, event.clientY - at.top);
      if (index < 0) { hush(); show(null); } else choose(index, event);
    };
    element.addEventListener("pointermove", move);
    element.addEventListener("pointerdown", move);
    element.addEventListener("pointerleave", () => { hush(); show(null); });
    element.addEventListener("blur", () => { hush(); show(null); });
    element.addEventListener("keydown", event => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") { hush(); show(null); }
      if (!step || !spots.length) return;
      event.preventDefault();
      choose((chosen + step + spots.length) % spots.length);
    });
  }

  // Scales ---------------------------------------------------------------------------------------------------------
  function ticks(low, high, room, axis) {
    if (axis.scale === "log") {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
        for (const factor of high / low > 1e3 ? [1] : [1, 2, 5]) found.push(factor * 10 ** power);
      return found.filter(value => value >= low * 0.999 && value <= high * 1.001);
    }
    const unit = axis.kind === "seconds" ? (high >= 7200 ? 3600 : high >= 120 ? 60 : 1) : 1;
    const rough = Math.max((high - low) / unit / Math.max(2, room), 1e-9), power = 10 ** Math.floor(Math.log10(rough));
    let step = [1, 2, 5, 10].map(factor => factor * power).find(step => step >= rough) * unit;
    if (axis.names || axis.kind === "count" && step < 1 && high > 3) step = Math.max(1, step);
    const found = [];
    for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(Math.abs(value) < step * 1e-6 ? 0 : value);
    return found;
  }
  function scaled(axis, values, from, to) {
    let low = Math.min(...values), high = Math.max(...values);
    if (axis.scale === "names") { low = -0.5; high = axis.names.length - 0.5; }
    else if (axis.scale === "log") { low = (axis.low ?? low) / 1.2; high = (axis.high ?? high) * 1.2; }
    else {
      const room = axis.names ? (axis.names.length > 1 ? 0.02 * axis.names.length : 0.5) : 0.06 * (high - low || Math.abs(high) || 1);
      low = axis.low ?? low - room;
      high = axis.high ?? high + room;
    }
    const bend = axis.scale === "log" ? Math.log10 : value => value;
    const place = value => from + ((bend(value) - bend(low)) / (bend(high) - bend(low))) * (to - from);
    return { low, high, place };
  }
  const nameAt = (axis, value) => axis.names && axis.names[Math.round(value) - (axis.scale === "names" ? 0 : 1)];

  // Marks: every shape as a piece of one path ------------------------------------------------------------------------
  const R = 3.6;
  const polygon = (...corners) => (x, y) => "M" + corners.map(([dx, dy]) => `${(x + R * dx).toFixed(1)},${(y + R * dy).toFixed(1)}`).join("L") + "Z";
  const SHAPES = {
    o: (x, y) => `M${(x - R).toFixed(1)},${y.toFixed(1)}a${R},${R} 0 1,0 ${2 * R},0a${R},${R} 0 1,0 ${-2 * R},0`,
    s: polygon([-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]),
    "^": polygon([-1.1, 0.9], [1.1, 0.9], [0, -1.2]),
    v: polygon([-1.1, -0.9], [1.1, -0.9], [0, 1.2]),
    D: polygon([-1.2, 0], [0, -1.2], [1.2, 0], [0, 1.2]),
    P: polygon([-0.4, -1.2], [0.4, -1.2], [0.4, -0.4], [1.2, -0.4], [1.2, 0.4], [0.4, 0.4], [0.4, 1.2], [-0.4, 1.2], [-0.4, 0.4], [-1.2, 0.4], [-1.2, -0.4], [-0.4, -0.4]),
    X: polygon([-1.2, -0.7], [-0.7, -1.2], [0, -0.5], [0.7, -1.2], [1.2, -0.7], [0.5, 0], [1.2, 0.7], [0.7, 1.2], [0, 0.5], [-0.7, 1.2], [-1.2, 0.7], [-0.5, 0]),
    _: polygon([-1.4, -0.35], [1.4, -0.35], [1.4, 0.35], [-1.4, 0.35]),
  };
  function mark(parent, series, spots) {
    const shape = SHAPES[series.marker];
    if (!shape || !spots.length) return;
    const fill = series.hollow ? style("--sheet") : series.color;
    add(parent, "path", { d: spots.map(spot => shape(spot.x, spot.y)).join(""), fill, stroke: series.color, "stroke-width": series.hollow ? 1.6 : 0.5 });
  }

  // Points and lines -------------------------------------------------------------------------------------------------
  function drawXY(host, chart, figure) {
    const across = chart.y.scale === "names", width = Math.max(host.clientWidth, 220);
    const seen = chart.series.filter(series => !figure.hidden.has(series.name));
    const every = chart.series.flatMap(series => series.points.filter(point => point[0] != null && point[1] != null));
    const bounds = chart.bounds || [], ends = every.flatMap(point => point.slice(2));
    const xs = every.map(point => point[0]).concat(across ? [...ends, ...bounds.map(bound => bound[0])] : []);
    const ys = every.map(point => point[1]).concat(across ? [] : [...ends, ...bounds.map(bound => bound[0])]);
    const top = chart.title ? 24 : 10, bottom = chart.x.label ? 40 : 24;
    const height = across ? top + bottom + Math.max(2, chart.y.names.length) * ROW : Math.round(Math.min(380, Math.max(220, width * 0.42)));
    const names = across ? Math.min(widest(chart.y.names) + 14, width * 0.42) : 0;
    const y = across ? scaled(chart.y, ys, top, height - bottom) : scaled(chart.y, ys, height - bottom, top);
    const up = across ? [] : ticks(y.low, y.high, (height - top - bottom) / 36, chart.y);
    const left = across ? names : Math.max(52, widest(up.map(value => tick(value, chart.y.kind))) + 28), right = 14;
    const svg = add(host, "svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": `${figure.title}${chart.title ? ": " + chart.title : ""}. The arrow keys step through its values.` });
    const x = scaled(chart.x, xs, left + 6, width - right), label = chart.y.label === chart.title ? "" : chart.y.label || "";
    if (chart.title) add(svg, "text", { x: 0, y: 12, class: "title" }, short(chart.title, width));

    if (across) chart.y.names.forEach((name, row) => {
      add(svg, "line", { x1: left, x2: width - right, y1: y.place(row), y2: y.place(row), class: "grid" });
      add(svg, "text", { x: left - 8, y: y.place(row) + 4, "text-anchor": "end" }, short(name, names - 10));
    });
    else {
      for (const value of up) {
        add(svg, "line", { x1: left, x2: width - right, y1: y.place(value), y2: y.place(value), class: "grid" });
        add(svg, "text", { x: left - 6, y: y.place(value) + 4, "text-anchor": "end" }, tick(value, chart.y.kind));
      }
      add(svg, "text", { x: 12, y: (top + height - bottom) / 2, class: "quiet", "text-anchor": "middle", transform: `rotate(-90 12 ${(top + height - bottom) / 2})` }, short(label, height - top - bottom));
    }
    const along = chart.x.scale === "names" ? chart.x.names.map((_, place) => place) : ticks(x.low, x.high, (width - left - right) / (chart.x.names ? 34 : 52), chart.x);
    for (const value of along) {
      const name = chart.x.scale === "names" ? short(chart.x.names[value], (width - left - right) / along.length - 8) : tick(value, chart.x.kind);
      if (across) add(svg, "line", { x1: x.place(value), x2: x.place(value), y1: top, y2: height - bottom, class: "grid" });
      add(svg, "text", { x: x.place(value), y: height - bottom + 15, "text-anchor": "middle" }, name);
    }
    add(svg, "text", { x: (left + width - right) / 2, y: height - 6, class: "quiet", "text-anchor": "middle" }, short(chart.x.label || "", width));
    for (const [value, name] of bounds) {
      const at = across ? x.place(value) : y.place(value);
      add(svg, "line", across ? { x1: at, x2: at, y1: top, y2: height - bottom, class: "bound" } : { x1: left, x2: width - right, y1: at, y2: at, class: "bound" });
      add(svg, "text", across ? { x: at + (at > width / 2 ? -4 : 4), y: top + 3, "text-anchor": at > width / 2 ? "end" : "start", class: "boundname" } : { x: width - right, y: at - 5, "text-anchor": "end", class: "boundname" }, name);
    }

    const spots = [], bands = seen.filter(series => series.line).length <= MOST_BANDS;
    for (const series of seen) {
      const group = add(svg, "g", { "data-name": series.name }), mine = [];
      series.points.forEach(([px, py, low, high], index) => {
        if (px == null || py == null) return mine.push(null);
        const value = across ? px : py, where = across ? nameAt(chart.y, py) : null;
        const other = across ? where : (nameAt(chart.x, px) ? `${chart.x.scale === "names" ? "" : Math.round(px) + ". "}${nameAt(chart.x, px)}` : `${chart.x.label || "x"} ${said(px, chart.x.kind)}`);
        const sure = low == null ? "" : ` [${said(low, (across ? chart.x : chart.y).kind)}, ${said(high, (across ? chart.x : chart.y).kind)}]`;
        const note = series.notes ? `\n${series.notes[index]}` : "";
        mine.push({ x: x.place(px), y: y.place(py), low, high, text: `${series.name}\n${other}\n${said(value, (across ? chart.x : chart.y).kind)}${sure}${note}` });
      });
      const there = mine.filter(Boolean), sure = there.filter(spot => spot.low != null);
      const end = across ? x.place : y.place;
      if (sure.length && series.line && bands)
        add(group, "path", { d: "M" + sure.map(spot => `${spot.x},${end(spot.high)}`).join("L") + "L" + sure.slice().reverse().map(spot => `${spot.x},${end(spot.low)}`).join("L") + "Z", fill: series.color, opacity: 0.14 });
      if (sure.length && !series.line)
        add(group, "path", { d: sure.map(spot => (across ? `M${end(spot.low)},${spot.y}H${end(spot.high)}` : `M${spot.x},${end(spot.low)}V${end(spot.high)}`)).join(""), stroke: series.color, "stroke-width": 1.2, fill: "none" });
      if (series.line) {
        let pen = "M";
        const d = mine.map(spot => { const piece = spot ? `${pen}${spot.x.toFixed(1)},${spot.y.toFixed(1)}` : ""; pen = spot ? "L" : "M"; return piece; }).join("");
        add(group, "path", { d, fill: "none", stroke: series.color, "stroke-width": 2, "stroke-dasharray": series.dash || "none", "stroke-linejoin": "round" });
      }
      const apart = series.line ? Math.max(1, Math.ceil(there.length / (width / 26))) : 1; // markers of long lines
      mark(group, series, there.filter((_, index) => index % apart === 0));
      spots.push(...there);
    }
    const ring = add(svg, "circle", { r: 7, fill: "none", stroke: style("--ink"), "stroke-width": 1.5, visibility: "hidden" });
    const nearest = (px, py) => {
      let best = -1, least = NEAR * NEAR;
      spots.forEach((spot, index) => {
        const far = (spot.x - px) ** 2 + (spot.y - py) ** 2;
        if (far < least) { least = far; best = index; }
      });
      return best;
    };
    pointing(svg, spots, nearest, spot => {
      ring.setAttribute("visibility", spot ? "visible" : "hidden");
      if (spot) { ring.setAttribute("cx", spot.x); ring.setAttribute("cy", spot.y); }
    });
  }

  // Maps ---------------------------------------------------------------------------------------------------------------
  function mixed(stops, share) {
    const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1), from = Math.min(Math.floor(at), stops.length - 2);
    return stops[from].map((channel, index) => Math.round(channel + (at - from) * (stops[from + 1][index] - channel)));
  }
  function bright(rgb) {
    const [red, green, blue] = rgb.map(channel => ((channel / 255) <= 0.04045 ? channel / 3294.6 : ((channel / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179; // where black and white have the same contrast
  }
  function drawHeat(host, chart, figure) {
    const rows = chart.rows.length, columns = chart.columns.length, width = Math.max(host.clientWidth, 220);
    const flat = chart.values.flat().filter(value => value != null);
    const most = chart.signed ? Math.max(0.05, ...flat.map(Math.abs)) : 1;
    const numbered = chart.columns.every((name, index) => name.startsWith(`${index + 1}. `)) || columns > 40;
    const longest = widest(chart.rows) + 12;
    const left = Math.min(longest, Math.max(80, width * (width < 500 ? 0.34 : 0.28)));
    const slant = numbered ? 0 : Math.min(SLANTED, widest(chart.columns));
    const narrow = (width - left) / columns < 26, turn = narrow ? -1.4 : -0.95; // so that names do not cross
    const top = (chart.title ? 22 : 4) + (numbered ? 20 : slant * Math.sin(-turn) + 14), edge = numbered ? 4 : slant * Math.cos(turn);
    const cell = Math.max(numbered ? 3 : 13, Math.min(64, (width - left - edge) / columns)), high = rows > 120 ? Math.max(3, Math.min(CELL, 1400 / rows)) : CELL;
    const whole = Math.ceil(Math.max(width, left + cell * columns + edge)), tall = Math.ceil(top + high * rows + 4), sharp = devicePixelRatio || 1;
    const canvas = add(host, "canvas", { role: "img", tabindex: 0, "aria-label": `${figure.title}${chart.title ? ": " + chart.title : ""}. The arrow keys step through its values.`, width: whole * sharp, height: tall * sharp });
    canvas.style.width = whole + "px";
    canvas.style.height = tall + "px";
    const pen = canvas.getContext("2d"), ink = style("--ink");
    const stops = style(chart.signed ? "--signed" : "--scores").split(",").map(hex => [1, 3, 5].map(at => parseInt(hex.trim().slice(at, at + 2), 16)));
    const share = value => (chart.signed ? (value / most + 1) / 2 : value), spots = [];
    function paint(cursor) {
      pen.setTransform(sharp, 0, 0, sharp, 0, 0);
      pen.clearRect(0, 0, whole, tall);
      pen.font = "600 11px system-ui, sans-serif";
      pen.fillStyle = ink;
      pen.textBaseline = "middle";
      if (chart.title) pen.fillText(chart.title, 0, 9);
      pen.font = "11px system-ui, sans-serif";
      pen.textAlign = "right";
      const skip = Math.ceil(13 / high);
      chart.rows.forEach((name, row) => { if (row % skip === 0) pen.fillText(short(name, left - 10), left - 6, top + (row + 0.5) * high); });
      const every = numbered ? [1, 2, 5, 10, 20, 50].find(step => step * cell >= 20) || 100 : 1;
      chart.columns.forEach((name, column) => {
        const x = left + (column + 0.5) * cell;
        if (numbered && (column + 1) % every && column) return;
        pen.save();
        pen.translate(x, top - 8);
        pen.textAlign = numbered ? "center" : "left";
        if (!numbered) pen.rotate(turn);
        pen.fillText(numbered ? String(column + 1) : short(name, SLANTED), 0, 0);
        pen.restore();
      });
      pen.textAlign = "center";
      chart.values.forEach((cells, row) => cells.forEach((value, column) => {
        if (value == null) return;
        const rgb = mixed(stops, share(value)), x = left + column * cell, y = top + row * high, seam = cell > 8 && high > 8 ? 1 : 0;
        pen.fillStyle = `rgb(${rgb})`;
        pen.fillRect(x, y, cell - seam, high - seam);
        if (cell >= 26 && high >= 12) {
          pen.fillStyle = bright(rgb) ? "#000000" : "#ffffff";
          const text = minus(Math.abs(value) < 0.005 ? "0" : value.toFixed(2).replace("0.", cell < 32 ? "." : "0."));
          pen.fillText(chart.signed && value > 0.005 ? "+" + text : text, x + cell / 2, y + high / 2 + 0.5);
        }
      }));
      pen.strokeStyle = style("--frame");
      pen.lineWidth = 1.3;
      if (cell > 5) for (const [row, column] of chart.framed || []) pen.strokeRect(left + column * cell + 0.5, top + row * high + 0.5, cell - 2, high - 2);
      if (chart.gap) {
        pen.beginPath();
        if (chart.gap > 0) { pen.moveTo(left, top + chart.gap * high - 0.5); pen.lineTo(left + columns * cell, top + chart.gap * high - 0.5); }
        else { pen.moveTo(left - chart.gap * cell - 0.5, top); pen.lineTo(left - chart.gap * cell - 0.5, top + rows * high); }
        pen.stroke();
      }
      if (cursor) { pen.lineWidth = 2.5; pen.strokeRect(cursor.x - cell / 2 + 1, cursor.y - high / 2 + 1, cell - 2, high - 2); }
    }
    chart.values.forEach((cells, row) => cells.forEach((value, column) => {
      if (value == null) return;
      spots.push({ row, column, x: left + (column + 0.5) * cell, y: top + (row + 0.5) * high, text: `${chart.rows[row]}\n${chart.columns[column]}\n${said(value, chart.signed ? "signed" : "score")}` });
    }));
    const index = new Map(spots.map((spot, place) => [spot.row * columns + spot.column, place]));
    pointing(canvas, spots, (px, py) => {
      const row = Math.floor((py - top) / high), column = Math.floor((px - left) / cell);
      return column < 0 || column >= columns ? -1 : index.get(row * columns + column) ?? -1;
    }, paint);
    paint(null);
    const scale = add(host, "div", { class: "scale" });
    add(scale, "span", {}, said(chart.signed ? -most : 0, chart.signed ? "signed" : "score"));
    add(scale, "i").style.background = `linear-gradient(to right, ${style(chart.signed ? "--signed" : "--scores")})`;
    add(scale, "span", {}, said(most, chart.signed ? "signed" : "score"));
  }

  // Figures --------------------------------------------------------------------------------------------------------------
  class Figure {
    constructor(element) {
      this.element = element;
      this.title = element.dataset.title;
      this.charts = DATA[element.dataset.topic];
      this.hidden = new Set();
      this.host = add(element, "div", { class: "charts" });
      const least = this.charts.length === 1 || this.charts.some(chart => chart.columns) ? 2000 : this.charts.length > 4 ? 290 : 400;
      this.host.style.gridTemplateColumns = `repeat(auto-fit, minmax(min(100%, ${least}px), 1fr))`;
      const titles = this.charts.map(chart => chart.title); // what has a chart of its own needs no key
      const named = [...new Map(this.charts.flatMap(chart => chart.series || []).map(series => [series.name, series])).values()];
      this.names = named.filter(series => !titles.includes(series.name));
      if (this.names.length > 1 || this.names.length && this.names.length < named.length) this.keys = add(element, "ul", { class: "keys", "aria-label": "Shown in this figure" });
      this.width = 0;
      new ResizeObserver(() => { if (element.clientWidth && element.clientWidth !== this.width) this.draw(); }).observe(element);
    }
    draw() {
      this.width = this.element.clientWidth;
      if (!this.width) return;
      hush();
      const tall = this.host.offsetHeight;
      this.host.style.minHeight = tall + "px"; // so that the page does not jump
      this.host.textContent = "";
      const hosts = this.charts.map(() => add(this.host, "div", { class: "chart" }));
      this.charts.forEach((chart, index) => (chart.columns ? drawHeat : drawXY)(hosts[index], chart, this));
      this.host.style.minHeight = "";
      if (!this.keys) return;
      const focused = [...this.keys.querySelectorAll("button")].indexOf(document.activeElement);
      this.keys.textContent = "";
      this.names.forEach((series, index) => {
        const button = add(add(this.keys, "li"), "button", { type: "button", "aria-pressed": !this.hidden.has(series.name) });
        const key = add(button, "svg", { width: 26, height: 12, "aria-hidden": "true" });
        if (series.line) add(key, "line", { x1: 1, x2: 25, y1: 6, y2: 6, stroke: series.color, "stroke-width": 2, "stroke-dasharray": series.dash || "none" });
        mark(key, series, [{ x: 13, y: 6 }]);
        add(button, "span", {}, series.name);
        button.addEventListener("click", () => { if (!this.hidden.delete(series.name)) this.hidden.add(series.name); this.draw(); });
        button.addEventListener("pointerenter", () => this.single(series.name));
        button.addEventListener("pointerleave", () => this.single(null));
        if (index === focused) button.focus();
      });
    }
    single(name) {
      for (const group of this.host.querySelectorAll("g[data-name]")) group.classList.toggle("off", name !== null && group.dataset.name !== name);
    }
  }
  const figures = [...document.querySelectorAll("figure[data-topic]")].map(element => new Figure(element));
  DARK.addEventListener("change", () => figures.forEach(figure => figure.draw()));

  // Tables ---------------------------------------------------------------------------------------------------------------
  const SIZES = { GB: 1e9, MB: 1e6, kB: 1e3, h: 3600, min: 60 };
  function value(cell) {
    const text = (cell.textContent.length ? [...cell.childNodes].filter(node => node.nodeName !== "SMALL").map(node => node.textContent).join("") : "").trim();
    const parts = [...text.replace(/−/g, "-").replace(/,/g, "").matchAll(/([+-]?[\d.]+(?:e[+-]?\d+)?)\s*(GB|MB|kB|h\b|min)?/g)];
    if (!parts.length || cell.classList.contains("words") && !/^\d+\. /.test(text)) return text === "–" ? null : text.toLowerCase();
    return /^\d+\. /.test(text) ? parseInt(text, 10) : parts.reduce((sum, [, number, unit]) => sum + number * (SIZES[unit] || 1), 0);
  }
  function order(one, other, sign) {
    if (one === null || other === null) return (one === null) - (other === null);
    return sign * (typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other), undefined, { numeric: true }));
  }
  for (const table of document.querySelectorAll("table")) {
    if (table.rows.length < 4) continue;
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort by this column";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = head.classList.contains("number") ? "descending" : "ascending", other = first === "ascending" ? "descending" : "ascending";
        const way = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach(one => one.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", way);
        const rows = [...table.tBodies[0].rows].map(row => [value(row.cells[column]), row]);
        rows.sort(([one], [two]) => order(one, two, way === "ascending" ? 1 : -1));
        table.tBodies[0].append(...rows.map(([, row]) => row));
      });
    });
  }

  // Contents: open beside the page, closed above it.
  const beside = matchMedia("(min-width: 1360px)"), contents = document.getElementById("contents");
  const fit = () => { contents.open = beside.matches; };
  beside.addEventListener("change", fit);
  fit();
  const unfold = () => {
    const details = location.hash.length > 1 && document.getElementById(location.hash.slice(1))?.querySelector("details.folded");
    if (details) details.open = true;
  };
  addEventListener("hashchange", unfold);
  unfold();
})();
