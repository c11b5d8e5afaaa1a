"use strict";
// Every text from a record becomes a text node or an attribute, never HTML. Each part is made when it comes into view.
(() => {
  const packed = id => document.getElementById(id).textContent;

  async function unpack(id) {
    const bytes = Uint8Array.from(atob(packed(id)), character => character.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  let library = null;
  function plotly() {
    library ??= unpack("plotly").then(code => {
      const script = document.createElement("script");
      script.textContent = code; // its hash is in the page's policy
      document.head.append(script);
      return window.Plotly;
    });
    return library;
  }

  function element(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter(child => child !== null && child !== undefined));
    return made;
  }

  const number = value => value === null || value === undefined ? "–" : String(Number(value.toPrecision(4)));
  const interval = (value, low, high) =>
    number(value) + (low === null || low === undefined || high === null ? "" : ` [${number(low)}, ${number(high)}]`);
  const plain = text => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;"); // for plotly's labels

  // Long names may break after their separators, not within a word.
  function breakable(text) {
    const pieces = document.createDocumentFragment();
    text.split(/(?<=[\/_(,+-](?=[^\s\d]))/).forEach((piece, index) => pieces.append(...(index ? [element("wbr")] : []), piece));
    return pieces;
  }

  // A label in lines of about `width` characters, for plotly.
  function lines(text, width) {
    const made = [""];
    for (const word of text.split(" ")) {
      if (made.at(-1) && made.at(-1).length + word.length >= width) made.push(word);
      else made[made.length - 1] += (made.at(-1) ? " " : "") + word;
    }
    return made.map(plain).join("<br>");
  }

  function choice(label, options, change) {
    const select = element("select", { onchange: () => change(Number(select.value)) });
    options.forEach((text, index) => select.append(element("option", { value: index }, text)));
    return element("label", {}, label, select);
  }

  // -- tables ------------------------------------------------------------------------------------------------------

  const PAGE = 50;

  // columns: names; rows: arrays of texts, or of nodes made when shown (functions); the first column is the row's header.
  function table(caption, columns, rows, { filter = rows.length > 10 } = {}) {
    let found = rows, start = 0, sorted = null, falling = false;
    const body = element("tbody");
    const status = element("span", { role: "status" });
    const text = cell => typeof cell === "function" ? cell.text ?? "" : String(cell);
    const heads = columns.map((name, index) => {
      if (!name.trim()) return element("th", { scope: "col" }, element("span", {}, name));
      const button = element("button", { type: "button", title: "sort", onclick: () => sort(index) }, name);
      return element("th", { scope: "col" }, button);
    });
    function sort(index) {
      falling = sorted === index ? !falling : false;
      sorted = index;
      heads.forEach((head, place) => head.toggleAttribute("aria-sort", false) || (place === index && head.setAttribute("aria-sort", falling ? "descending" : "ascending")));
      const value = row => { const t = text(row[index]), n = parseFloat(t.replace("−", "-").replace("∞", "Infinity")); return Number.isNaN(n) ? t : n; };
      const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      found = [...found].sort((a, b) => (falling ? -1 : 1) * compare(value(a), value(b)));
      start = 0;
      show();
    }
    function show() {
      body.replaceChildren(...found.slice(start, start + PAGE).map(row => element("tr", {}, ...row.map((cell, index) => {
        const whole = text(cell).length < 24 || /^\S+ \[\S+ \S+\]$/.test(text(cell)); // short, or a number with its interval
        const fit = /\S{20}/.test(text(cell)) ? "long" : whole && "short"; // a word that would make the table too wide
        const made = typeof cell === "function" ? cell() : index && fit === "short" ? String(cell) : breakable(String(cell));
        return index ? element("td", { class: fit }, made) : element("th", { scope: "row" }, made);
      }))));
      status.textContent = found.length ? `rows ${start + 1} to ${Math.min(start + PAGE, found.length)} of ${found.length}` : "no rows";
      back.disabled = start === 0;
      on.disabled = start + PAGE >= found.length;
    }
    const back = element("button", { type: "button", onclick: () => { start -= PAGE; show(); } }, "Previous rows");
    const on = element("button", { type: "button", onclick: () => { start += PAGE; show(); } }, "Next rows");
    const search = element("input", { type: "search", oninput: () => {
      const wanted = search.value.toLowerCase();
      found = rows.filter(row => row.some(cell => text(cell).toLowerCase().includes(wanted)));
      start = 0;
      show();
    } });
    const controls = element("div", { class: "controls" });
    if (filter) controls.append(element("label", {}, "Only rows with", search));
    if (rows.length > PAGE) controls.append(back, on);
    controls.append(status);
    show();
    return element("div", {}, controls, element("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: 0 },
      element("table", {}, element("caption", {}, caption), element("thead", {}, element("tr", {}, ...heads)), body)));
  }

  function tableOnDemand(make) {
    const details = element("details", {}, element("summary", {}, "What is drawn, as a table"));
    details.addEventListener("toggle", () => {
      if (details.open) details.replaceChildren(details.firstChild, make());
    });
    return { details, stale: () => { if (details.open) details.replaceChildren(details.firstChild, make()); } };
  }

  // -- looks -------------------------------------------------------------------------------------------------------

  const COLOURS = ["#c24e00", "#0068ad", "#007a58", "#9a3f86", "#856000", "#a3243b", "#2f2f2f", "#4f5bd5", "#5c7a00", "#00798c"]; // 3 : 1 on white or more
  const DASHES = ["solid", "dash", "dashdot", "dot", "longdash", "longdashdot"];
  const STROKES = { solid: "", dash: "6 3", dashdot: "6 2 1 2", dot: "1.5 2", longdash: "9 3", longdashdot: "9 2 1 2" };
  const MARKS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "pentagon", "star", "hexagon"];
  const SIGNS = ["●", "■", "▲", "◆", "▼", "✚", "✖", "⬟", "★", "⬢"];
  const FIRST = ["dpo", "ipo", "maxpo"];
  const BOUND = "RLHF optimum (bound)";
  const rank = method => { // sums of losses and other trainings after the plain ones
    const place = FIRST.findIndex(each => method === each || (method.startsWith(each + "(") && !method.includes("+")));
    return apart.has(method) ? FIRST.length + 1 : place < 0 ? FIRST.length : place;
  };
  const order = methods => [...new Set(methods)].sort((a, b) => (a === BOUND) - (b === BOUND) || rank(a) - rank(b) || (counts.get(b) || 0) - (counts.get(a) || 0) || a.localeCompare(b));
  const apart = new Set(), counts = new Map(); // methods whose training is another, and how many runs each has
  let everywhere = []; // methods of runs
  const look = (method, methods) => {
    if (method === BOUND) return { colour: "#6b6b6b", dash: "solid", mark: "circle", sign: "—" };
    const at = everywhere.includes(method) ? everywhere.indexOf(method) : methods.indexOf(method); // the same in every plot
    return { colour: COLOURS[at % COLOURS.length], dash: DASHES[at % DASHES.length], mark: MARKS[at % MARKS.length], sign: SIGNS[at % SIGNS.length] };
  };

  function swatch({ colour, dash, sign }) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    for (const [name, value] of Object.entries({ width: 26, height: 6, "aria-hidden": "true" })) svg.setAttribute(name, value);
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [name, value] of Object.entries({ x1: 0, x2: 26, y1: 3, y2: 3, stroke: colour, "stroke-width": 2.5, "stroke-dasharray": STROKES[dash] })) line.setAttribute(name, value);
    svg.append(line);
    const mark = element("span", { "aria-hidden": "true" }, sign);
    mark.style.color = colour;
    return [svg, mark];
  }

  // Checkboxes are the legend: they work from the keyboard and name colour, line and marker of each method.
  const SHOWN_AT_FIRST = 6;
  function legend(methods, change) {
    const chosen = new Set(methods.length > SHOWN_AT_FIRST + 2 ? [...methods.slice(0, SHOWN_AT_FIRST), ...methods.filter(each => each === BOUND)] : methods);
    const boxes = methods.map(method => element("input", { type: "checkbox", checked: chosen.has(method), onchange: event => {
      if (event.target.checked) chosen.add(method); else chosen.delete(method);
      change();
    } }));
    const set = all => { boxes.forEach((box, index) => { box.checked = all; if (all) chosen.add(methods[index]); else chosen.delete(methods[index]); }); change(); };
    const labels = methods.map((method, index) => element("label", {}, boxes[index], ...swatch(look(method, methods)), method));
    const field = element("fieldset", {}, element("legend", {}, "Shown"), ...labels);
    const only = wanted => labels.forEach((label, index) => { label.hidden = !wanted.has(methods[index]); }); // that are on the plot at all
    if (methods.length > 3) field.append(element("button", { type: "button", onclick: () => set(true) }, "All"), " ", element("button", { type: "button", onclick: () => set(false) }, "None"));
    return { field, chosen, only };
  }

  const FONT = { family: 'system-ui, "DejaVu Sans", sans-serif', size: 13, color: "#1b1b1b" };
  // The unit goes to a line of its own where the title would not fit.
  const axis = (title, room) => ({ title: { text: plain(title).replace(title.length * 8 > room ? " [" : "", title.length * 8 > room ? "<br>[" : "") }, gridcolor: "#e3e3e3", zerolinecolor: "#9a9a9a", linecolor: "#6b6b6b", ticks: "outside", automargin: true });

  async function draw(target, traces, layout, label) {
    target.setAttribute("aria-label", label);
    const Plotly = await plotly();
    await Plotly.react(target, traces, {
      font: FONT, paper_bgcolor: "#fff", plot_bgcolor: "#fff", showlegend: false, hovermode: "closest", margin: { l: 60, r: 15, t: 15, b: 50 },
      hoverlabel: { align: "left", bgcolor: "#fff", bordercolor: "#4a4a4a", font: { ...FONT, size: 12 } }, ...layout,
    }, { responsive: true, displayModeBar: false });
    target.dataset.drawn = "true";
  }

  const plot = () => element("div", { class: "plot", role: "img" });

  // -- the parts ---------------------------------------------------------------------------------------------------

  let data;
  const of = index => data.runs[index];

  const MANY = 80; // points whose intervals would hide each other

  function frontiers(part) {
    const target = plot(), caption = element("figcaption"), settings = element("div", { class: "controls" }), box = element("div");
    let panel, y, kept, each = 0;
    const series = () => each ? panel.each : panel.series;
    const shown = () => series().filter(one => kept.chosen.has(one.method) && y.name in one.y);
    const points = () => series().reduce((sum, one) => sum + one.x.length, 0);
    const bars = element("input", { type: "checkbox", onchange: () => redraw() });
    const banded = element("input", { type: "checkbox", onchange: () => redraw() });
    const rows = () => shown().flatMap(one => one.x.map((x, at) => [
      one.label, one.runs.map(run => of(run).id).join(", "), number(one.strength?.[at]), one.step?.[at] ?? "–", one.status?.[at] ?? "–",
      interval(x, one.x_low?.[at], one.x_high?.[at]), interval(one.y[y.name][0][at], one.y[y.name][1]?.[at], one.y[y.name][2]?.[at])]));
    const values = tableOnDemand(() => table("Points of the plot", ["objective", "run", "strength", "step", "status", panel.x.title, y.title], rows()));
    function redraw() {
      const methods = order(panel.series.map(one => one.method));
      const traces = [], behind = banded.checked && panel.bands.length > 0; // paths, where frontiers are drawn
      for (const one of panel.bands.filter(one => behind && kept.chosen.has(one.method) && one.y === y.name)) {
        const { colour, dash } = look(one.method, methods);
        traces.push({ type: "scatter", mode: "none", x: [...one.kl, ...[...one.kl].reverse()], y: [...one.high, ...[...one.low].reverse()], fill: "toself", fillcolor: colour + "1f", hoverinfo: "skip" });
        traces.push({ type: "scatter", mode: "lines", x: one.kl, y: one.reward, line: { color: colour, dash, width: 3 }, hovertemplate: `<b>${plain(one.method)}</b><br>frontier at KL %{x:.3g}: %{y:.3g}<extra></extra>` });
      }
      for (const method of methods.filter(each => kept.chosen.has(each))) {
        const style = look(method, methods);
        const t = { x: [], y: [], text: [], size: [], xp: [], xm: [], yp: [], ym: [] };
        for (const one of shown().filter(each => each.method === method)) {
          const [middle, low, high] = one.y[y.name];
          one.x.forEach((x, at) => {
            const ends = (value, l, h) => !bars.checked || l?.[at] === null || l?.[at] === undefined ? [0, 0] : [h[at] - value, value - l[at]];
            const [xp, xm] = ends(x, one.x_low, one.x_high), [yp, ym] = ends(middle[at], low, high);
            t.x.push(x); t.y.push(middle[at]); t.xp.push(xp); t.xm.push(xm); t.yp.push(yp); t.ym.push(ym);
            t.size.push(one.kind === "path" ? (at === one.x.length - 1 ? 10 : 5) : one.kind === "bound" ? 0 : 6);
            t.text.push([`<b>${plain(one.label)}</b>`, one.runs.slice(0, 5).map(run => plain(of(run).id)).join("<br>"), one.runs.length > 1 ? `${one.runs.length} seeds` : "", one.strength?.[at] == null ? "" : `strength ${number(one.strength[at])}`,
              one.step ? `step ${one.step[at]}` : "", one.status ? plain(one.status[at]) : "",
              `KL ${interval(x, one.x_low?.[at], one.x_high?.[at])}`, `${plain(y.title)} ${interval(middle[at], low?.[at], high?.[at])}`].filter(Boolean).join("<br>"));
          });
          t.x.push(null); t.y.push(null); t.xp.push(0); t.xm.push(0); t.yp.push(0); t.ym.push(0); t.size.push(0); t.text.push("");
        }
        const bar = (plus, minus) => ({ type: "data", symmetric: false, array: plus, arrayminus: minus, thickness: 1, width: 0, color: style.colour });
        traces.push({ type: "scatter", mode: method === BOUND ? "lines" : "lines+markers", name: plain(method), x: t.x, y: t.y, text: t.text, hovertemplate: "%{text}<extra></extra>",
          line: { color: style.colour, dash: style.dash, width: method === BOUND ? 4 : behind ? 1 : 1.5 }, marker: { symbol: style.mark, size: t.size, color: style.colour }, opacity: method === BOUND || behind ? .55 : 1,
          error_x: bar(t.xp, t.xm), error_y: bar(t.yp, t.ym) });
      }
      caption.textContent = panel.note;
      values.stale();
      return draw(target, traces, { xaxis: axis(panel.x.title, target.clientWidth - 90), yaxis: axis(y.title, target.clientHeight - 80) },
        `Plot, ${panel.title}: ${y.title} against ${panel.x.title} of ${shown().length} lines. The same values are in the table below.`);
    }
    function select(index) {
      panel = data.panels[index];
      y = panel.ys[0];
      kept = legend(order(panel.series.map(one => one.method)), redraw);
      bars.checked = points() <= MANY;
      banded.checked = !bars.checked;
      settings.replaceChildren(choice("Panel", data.panels.map(one => one.title), select), ...(panel.ys.length > 1 ? [choice("Vertical axis", panel.ys.map(one => one.title), at => { y = panel.ys[at]; redraw(); })] : []));
      each = 0;
      if (panel.each.length) settings.append(choice("Lines", ["over seeds", "each run"], at => { each = at; redraw(); }));
      if (panel.series.some(one => one.x_low)) settings.append(element("label", { class: "box" }, bars, " Intervals"));
      if (panel.bands.length) settings.append(element("label", { class: "box" }, banded, " Frontiers with bands"));
      settings.querySelector("select").value = index;
      box.replaceChildren(kept.field);
      redraw();
    }
    part.append(settings, box, element("figure", {}, target, caption), values.details);
    select(0);
  }

  function curves(part) {
    const target = plot(), caption = element("figcaption");
    const methods = order(data.curves.flatMap(one => one.lines.map(line => of(line[0]).method)));
    const kinds = [...new Set(data.curves.flatMap(one => one.lines.map(line => of(line[0]).labels)))].sort();
    const titles = data.curves.map(one => one.title);
    let entry = data.curves[0], kind = null;
    const kept = legend(methods, () => redraw());
    const shown = () => entry.lines.filter(line => kept.chosen.has(of(line[0]).method) && (kind === null || of(line[0]).labels === kind));
    const values = tableOnDemand(() => table("Last value of each line", ["run", "objective", "labels", "seed", "step", "value"],
      shown().map(([run, steps, values]) => [of(run).id, of(run).label, of(run).labels || "–", of(run).seed ?? "–", steps.at(-1), number(values.at(-1))])));
    function redraw() {
      const traces = [];
      kept.only(new Set(entry.lines.map(line => of(line[0]).method)));
      for (const method of methods.filter(each => kept.chosen.has(each))) {
        const style = look(method, methods), x = [], y = [], text = [];
        for (const [run, steps, values] of shown().filter(line => of(line[0]).method === method)) {
          const one = of(run);
          const said = [`<b>${plain(one.label)}</b>`, plain(one.id), one.strength === null ? "" : `strength ${number(one.strength)}`, plain(one.labels), one.seed === null ? "" : `seed ${one.seed}`].filter(Boolean).join("<br>");
          steps.forEach((step, at) => { x.push(step); y.push(values[at]); text.push(said); });
          x.push(null); y.push(null); text.push("");
        }
        if (x.length) traces.push({ type: "scatter", mode: x.length > 400 ? "lines" : "lines+markers", name: plain(method), x, y, text, connectgaps: false, hovertemplate: "%{text}<br>step %{x}: %{y:.4g}<extra></extra>",
          line: { color: style.colour, dash: style.dash, width: 1.5 }, marker: { symbol: style.mark, size: 5, color: style.colour } });
      }
      const gaps = shown().some(line => line[2].includes(null));
      caption.textContent = [entry.unit ? `Unit: ${entry.unit}.` : "", entry.thinned ? "Long curves are thinned: of equal stretches the lowest and the highest value are kept." : "", gaps ? "A gap is a value that is not finite." : ""].filter(Boolean).join(" ");
      values.stale();
      return draw(target, traces, { xaxis: axis("training step", target.clientWidth), yaxis: axis(entry.quantity + (entry.unit ? ` [${entry.unit}]` : ""), target.clientHeight - 80) },
        `Plot: ${entry.title} against training step of ${shown().length} runs. Their last values are in the table below.`);
    }
    part.append(element("div", { class: "controls" }, choice("Quantity", data.curves.map(one => one.title + (titles.filter(each => each === one.title).length > 1 ? ` (${one.name})` : "")), index => { entry = data.curves[index]; redraw(); }),
        kinds.length > 1 ? choice("Labels", ["all", ...kinds.map(each => each || "none recorded")], index => { kind = index ? kinds[index - 1] : null; redraw(); }) : ""),
      kept.field, element("figure", {}, target, caption), values.details);
    redraw();
  }

  function cards(part) {
    const target = plot(), box = element("div");
    function select(index) {
      const card = data.cards[index], methods = card.objectives;
      const score = ([value, low, high, note]) => value === null ? `no score: ${note}` : interval(value, low, high) + (note ? ` (${note})` : "");
      box.replaceChildren(table(`Scores of ${card.label} and its baselines`, ["diagnostic", ...methods], card.rows.map(row => [row.title, ...row.scores.map(score)]), { filter: false }));
      const names = card.rows.map(row => lines(row.title, target.clientWidth < 600 ? 14 : 26));
      const traces = methods.map((method, at) => {
        const style = look(method, methods);
        const values = card.rows.map(row => row.scores[at][0]);
        return { type: "scatterpolar", name: plain(method), r: [...values, values[0]], theta: [...names, names[0]], mode: "lines+markers", connectgaps: false,
          line: { color: style.colour, dash: style.dash, width: at ? 1.5 : 3 }, marker: { symbol: style.mark, size: at ? 5 : 8, color: style.colour },
          hovertemplate: `<b>${plain(method)}</b><br>%{theta}: %{r:.2f}<extra></extra>` };
      });
      keys.replaceChildren(...methods.map(method => element("span", {}, ...swatch(look(method, methods)), " ", method)));
      draw(target, traces, { margin: { l: 90, r: 90, t: 40, b: 40 }, polar: { radialaxis: { range: [0, 1], tickvals: [0, .5, 1], angle: 90, tickangle: 90, gridcolor: "#d5d5d5" }, angularaxis: { direction: "clockwise", rotation: 90, gridcolor: "#e3e3e3", tickfont: { size: 11 } } } },
        `Radar of ${card.label}: ${card.rows.length} scores from 0 to 1 (the better end) beside ${methods.length - 1} baselines. The same values are in the table below.`);
    }
    const keys = element("p", { class: "controls" });
    if (data.cards.length > 1) part.append(element("div", { class: "controls" }, choice("Objective", data.cards.map(card => card.label), select)));
    part.append(keys, element("figure", {}, target), box);
    select(0);
  }

  function benchmarks(part) {
    const { columns, rows } = data.benchmarks;
    const { columns: means, rows: over } = data.over_seeds;
    if (over.length) part.append(table("Over seeds", means, over));
    part.append(table(over.length ? "Each run" : "Benchmarks", columns, rows.map(([run, ...rest]) => [of(run).id, ...rest])));
  }

  function samples(part) {
    const box = element("div");
    function select(index) {
      const one = data.samples[index];
      const text = (place, reward) => {
        const words = place === null ? "–" : data.texts[place];
        const cell = () => element("div", { class: "text" }, words, ...(reward === null ? [] : [element("div", { class: "note" }, `reward ${number(reward)}`)]));
        cell.text = words;
        return cell;
      };
      box.replaceChildren(table(`${one.rows.length} of ${one.prompts} prompts of ${of(one.run).id}`, ["prompt", `before (step ${one.steps[0]})`, `after (step ${one.steps[1]})`],
        one.rows.map(([prompt, before, after, first, last]) => [text(prompt, null), text(before, first), text(after, last)])));
    }
    part.append(element("div", { class: "controls" }, choice("Run", data.samples.map(one => of(one.run).id), select)), box);
    select(0);
  }

  function runs(part) {
    const dialog = document.getElementById("manifest");
    const open = one => {
      dialog.querySelector("h2").textContent = one.id;
      dialog.querySelector("p").textContent = one.folder;
      dialog.querySelector("pre").textContent = JSON.stringify(one.manifest, null, 2);
      dialog.showModal();
    };
    const button = one => () => element("button", { type: "button", "aria-label": `manifest of ${one.id}`, onclick: () => open(one) }, "manifest");
    part.append(table("Runs", ["run", "kind", "objective", "labels", "seed", "device", "code", "written", " "], data.runs.map(one => [
      one.id, one.kind, one.label, one.labels || "–", one.seed ?? "–", one.manifest.device ?? "–", (one.manifest.code?.commit ?? one.manifest.code?.version ?? "–").slice(0, 10),
      (one.manifest.times?.written ?? "–").slice(0, 16).replace("T", " "), button(one)])));
  }

  const PARTS = { frontiers, cards, curves, benchmarks, samples, runs };

  async function start() {
    data = JSON.parse(await unpack("data"));
    for (const one of data.runs) {
      counts.set(one.method, (counts.get(one.method) || 0) + 1);
      if (one.apart) apart.add(one.method);
    }
    everywhere = order(data.runs.filter(one => one.kind !== "bandit").map(one => one.method));
    const make = part => {
      if (part.dataset.made) return;
      part.dataset.made = "true";
      if (part.dataset.part !== "samples" || data.samples.length) PARTS[part.dataset.part](part);
    };
    const seen = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(entry => { seen.unobserve(entry.target); make(entry.target); }), { rootMargin: "400px" });
    document.querySelectorAll(".part").forEach(part => seen.observe(part));
    window.addEventListener("beforeprint", () => document.querySelectorAll(".part").forEach(make));
    const opened = () => { const target = document.getElementById(decodeURIComponent(location.hash.slice(1))); if (target instanceof HTMLDetailsElement) target.open = true; };
    window.addEventListener("hashchange", opened);
    opened();
    document.documentElement.dataset.ready = "true";
  }
  requestAnimationFrame(() => setTimeout(start)); // the verdicts are painted first
})();
