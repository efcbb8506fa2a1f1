"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { runs, kinds, marks, groups, facts } = data;
  const REWRITE = 0, REPHRASE = 1, CHAT = 2, LOCALITY = 3, PORTABILITY = 4;
  const STEP = 200;
  const GOOD = new Set(["learned", "knew it", "kept"].map((name) => marks.indexOf(name)));
  const BLED = marks.indexOf("bled"), KEPT = marks.indexOf("kept"), FAILED = marks.indexOf("failed");
  const LEARNED = marks.indexOf("learned"), KNEW = marks.indexOf("knew it");
  const several = runs.length > 1;
  const part = (name) => document.querySelector(`#facts ${name}`);

  // Everything is made as text, so that nothing in the data can become markup.
  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "onclick") element.addEventListener("click", value);
      else if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }
  const badge = (mark) => make("b", { class: `mark ${marks[mark].replace(" it", "").replace(" ", "_")}` }, marks[mark]);

  // What the table shows of a fact in a run: its mark, and of each kind of probe how many are good.
  const rows = facts.map((fact, place) => {
    const counts = runs.map(() => kinds.map(() => [0, 0]));
    const bled = runs.map(() => 0);
    for (const [kind, , , , , seen] of fact[5]) {
      seen.forEach((found, run) => {
        if (found === null || fact[4][run] === null || fact[4][run][0] === FAILED) return;
        counts[run][kind][1] += 1;
        if (GOOD.has(found[1])) counts[run][kind][0] += 1;
        if (found[1] === BLED) bled[run] += 1;
      });
    }
    return { place, fact, counts, bled, marks: fact[4].map((edit) => (edit === null ? null : edit[0])), words: null, line: null };
  });
  const has = (kind) => facts.some((fact) => fact[5].some((probe) => probe[0] === kind));

  function words(row) {
    if (row.words === null) {
      const texts = [row.fact[0], row.fact[1], row.fact[2]];
      for (const [, , prompt, answers, before, seen] of row.fact[5]) {
        texts.push(prompt, ...answers, before[0] || "");
        for (const found of seen) if (found !== null && typeof found[0][0] === "string") texts.push(found[0][0]);
      }
      row.words = texts.join("\n").toLowerCase();
    }
    return row.words;
  }

  // Columns

  const share = ([good, all]) => (all ? good / all : -1);
  const columns = [{ label: "fact", value: (row) => row.place }];
  runs.forEach((name, run) => {
    columns.push({
      label: "outcome", run, value: (row) => row.marks[run] ?? 99,
      cell: (row) => (row.marks[run] === null ? "–" : badge(row.marks[run])),
    });
    const counted = [[REPHRASE, "rephrased"], [PORTABILITY, "portable"], [LOCALITY, "neighbours kept"]];
    for (const [kind, label] of counted) {
      if (!has(kind) || (several && kind === PORTABILITY)) continue;
      columns.push({
        label, run, value: (row) => share(row.counts[run][kind]),
        cell: (row) => {
          const [good, all] = row.counts[run][kind];
          return all ? make("span", good < all ? { class: "short" } : {}, `${good}/${all}`) : "–";
        },
      });
    }
    if (!several) {
      columns.push({
        label: "steps", run, value: (row) => row.fact[4][run][1], cell: (row) => String(row.fact[4][run][1]),
      });
    }
  });

  const anyRun = (test) => (row) => runs.some((_, run) => row.marks[run] !== null && test(row, run));
  const changed = (row, run) => row.counts[run][LOCALITY][0] < row.counts[run][LOCALITY][1];
  const learned = (row, run) => row.marks[run] === LEARNED || row.marks[run] === KNEW;
  const filters = [
    ["all", () => true],
    ["learned", anyRun(learned)],
    ["not learned", anyRun((row, run) => !learned(row, run) && row.marks[run] !== FAILED)],
    ["bled into a neighbour", anyRun((row, run) => row.bled[run] > 0)],
    ["neighbours changed", anyRun(changed)],
    ["all kept", anyRun((row, run) => row.counts[run][LOCALITY][1] > 0 && !changed(row, run))],
    ["failed", anyRun((row, run) => row.marks[run] === FAILED)],
  ];
  if (several) {
    const differ = (row) => new Set(runs.map((_, run) => JSON.stringify([row.marks[run], row.counts[run], row.bled[run]]))).size > 1;
    filters.push(["runs differ", differ]);
  }

  const state = { filter: 0, query: "", column: 0, up: true, shown: STEP, view: rows };
  const open = new Set();

  // Details of a fact, drawn when it is opened

  function changedText(before, after) {
    if (after === 0 || after === before) return make("span", { class: "text" }, before === "" ? "(nothing)" : before);
    const [a, b] = [(before || "").split(/(\s+)/), after.split(/(\s+)/)];
    let same = 0;
    while (same < a.length && same < b.length && a[same] === b[same]) same += 1;
    const rest = b.slice(same).join("");
    return make("span", { class: "text" }, b.slice(0, same).join(""), rest ? make("mark", null, rest) : after === "" ? "(nothing)" : null);
  }

  const percent = (value) => `${Math.round(100 * value)} %`;
  function numbers(kind, seen, edited) {
    const [, right, own, rival] = seen;
    const said = kind === LOCALITY && edited ? `tokens unchanged ${percent(right)}` : `tokens right ${percent(right)}`;
    const likely = own === undefined || own === null ? "" : `; P ${own}${rival === undefined || rival === null ? "" : `, rival ${rival}`}`;
    return make("small", null, said + likely);
  }

  function probeRow([kind, group, prompt, answers, before, seen]) {
    const expected = `${kind === LOCALITY ? "true answer" : "answer"}: ${answers.join(" | ")}`;
    const row = make("tr", null,
      make("td", null, prompt, make("small", null, (group === null ? "" : `${groups[group]}; `) + expected)),
      make("td", { "data-label": "before" }, before[0] === null ? null : make("span", { class: "text" }, before[0] === "" ? "(nothing)" : before[0]), numbers(kind, before, false)));
    seen.forEach((found, run) => {
      const cell = make("td", { "data-label": several ? runs[run] : "after" });
      if (found === null) cell.append("–");
      else {
        if (found[0][0] !== null) cell.append(changedText(before[0], found[0][0]));
        cell.append(badge(found[1]), numbers(kind, found[0], true));
      }
      row.append(cell);
    });
    return row;
  }

  function details(fact) {
    const [id, , , base, edits, probes] = fact;
    const box = make("div");
    edits.forEach((edit, run) => {
      if (edit === null) return;
      const [, steps, loss, , error, notes] = edit;
      const said = `${several ? `${runs[run]}: ` : ""}case ${id}, ${steps} steps${loss === null ? "" : `, last loss ${loss}`}`;
      box.append(make("small", null, said));
      if (error !== null) box.append(make("p", { class: "error" }, error));
      for (const note of notes || []) box.append(make("p", null, note));
    });
    for (const kind of [REWRITE, REPHRASE, CHAT, PORTABILITY, LOCALITY]) {
      const own = probes.filter((probe) => probe[0] === kind);
      if (!own.length) continue;
      const heads = ["prompt", "before", ...(several ? runs : ["after"])].map((text) => make("th", null, text));
      box.append(make("h4", null, kinds[kind]),
        make("table", null, make("thead", null, make("tr", null, ...heads)), make("tbody", null, ...own.map(probeRow))));
    }
    if (base !== null) {
      const texts = make("div", { class: "texts" }, make("div", null, make("small", null, "before"), make("span", { class: "text" }, base)));
      edits.forEach((edit, run) => {
        if (edit === null || edit[3] === null) return;
        const text = edit[3] === 0 ? base : edit[3];
        texts.append(make("div", null, make("small", null, several ? runs[run] : "after"), make("span", { class: "text" }, text)));
      });
      box.append(make("h4", null, "Sampled text after the prompt"), texts);
    }
    return make("tr", { class: "detail" }, make("td", { colspan: columns.length }, box));
  }

  // The table

  function rowOf(row) {
    if (row.line !== null) return row.line; // made once: sorting only moves it
    const line = make("tr", null, make("td", { class: "fact" }));
    const button = make("button", { type: "button", "aria-expanded": open.has(row.place), onclick: () => toggle(row, line, button) },
      row.fact[1], " → ", make("b", null, row.fact[2]), " ", make("small", null, row.fact[0]));
    line.firstChild.append(button);
    for (const column of columns.slice(1)) {
      line.append(make("td", { "data-label": several ? `${runs[column.run]}: ${column.label}` : column.label }, column.cell(row)));
    }
    row.line = line;
    return line;
  }

  function toggle(row, line, button) {
    if (open.delete(row.place)) line.nextSibling.remove();
    else {
      open.add(row.place);
      line.after(details(row.fact));
    }
    button.setAttribute("aria-expanded", open.has(row.place));
  }

  function draw(from) {
    const lines = document.createDocumentFragment();
    for (const row of state.view.slice(from, state.shown)) {
      lines.append(rowOf(row));
      if (open.has(row.place)) lines.append(details(row.fact));
    }
    if (from === 0) part("tbody").replaceChildren(lines);
    else part("tbody").append(lines);
    const left = state.view.length - state.shown;
    const further = (count) => () => {
      const begin = state.shown;
      state.shown += count;
      draw(begin);
    };
    part(".more").replaceChildren(...(left > 0 ? [
      make("button", { type: "button", onclick: further(STEP) }, `${Math.min(STEP, left)} more`), " ",
      make("button", { type: "button", onclick: further(left) }, `all ${state.view.length}`)] : []));
    part(".count").textContent = `${state.view.length} of ${rows.length} facts`;
  }

  function update(shown) {
    const query = state.query.trim().toLowerCase();
    const test = filters[state.filter][1];
    const { value } = columns[state.column];
    state.view = rows.filter((row) => test(row) && (!query || words(row).includes(query)));
    state.view.sort((a, b) => (state.up ? 1 : -1) * (value(a) - value(b)) || a.place - b.place);
    state.shown = shown;
    draw(0);
  }

  function head() {
    if (several) {
      const spans = runs.map((name, run) => make("th", { class: "run", colspan: columns.filter((column) => column.run === run).length }, name));
      part("thead").append(make("tr", null, make("th", { class: "run" }), ...spans));
    }
    const line = make("tr");
    columns.forEach((column, i) => {
      const cell = make("th", { scope: "col" });
      cell.append(make("button", { type: "button", onclick: () => {
        state.up = state.column === i ? !state.up : true;
        state.column = i;
        for (const other of line.children) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", state.up ? "ascending" : "descending");
        update(state.shown);
      } }, several && i ? make("span", { class: "whose" }, `${runs[column.run]}: `) : null, column.label));
      line.append(cell);
    });
    part("thead").append(line);
    part("table").classList.toggle("many", runs.length > 2);
    part("table").style.setProperty("--columns", columns.length - 1);
  }

  function tools() {
    filters.forEach(([label, test], i) => {
      const count = rows.filter(test).length;
      if (!count && i) return;
      part(".chips").append(make("button", { type: "button", "aria-pressed": i === 0, onclick: (event) => {
        state.filter = i;
        for (const other of part(".chips").children) other.setAttribute("aria-pressed", other === event.currentTarget);
        update(STEP);
      } }, `${label} ${count}`));
    });
    let waiting = 0;
    part("input").addEventListener("input", (event) => {
      state.query = event.target.value;
      clearTimeout(waiting);
      waiting = setTimeout(update, 120, STEP);
    });
    part(".tools").hidden = false;
  }

  head();
  tools();
  update(STEP);
})();
