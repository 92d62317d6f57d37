"use strict";
// The table of samples. What a model wrote becomes text nodes, control characters spelt out.
(async () => {
  const LONGEST = 600; // characters of a text that are shown at first
  const data = await unpacked();
  if (!data) return;
  const { rows, refs, runs, rewards } = data;
  const $ = (id) => document.getElementById(id);
  const many = new Intl.NumberFormat("en");
  const inOneWord = (value, isWhole) => (value === null ? "–"
    : value.toFixed(isWhole || Math.abs(value) >= 100 ? 0 : 2).replace("-", "−"));

  async function unpacked() {
    const notice = document.getElementById("unpacking");
    if (typeof DecompressionStream === "undefined") {
      notice.textContent = "This browser is too old to unpack the samples; they lie in samples.jsonl.";
      notice.className = "warn";
      return null;
    }
    const packed = document.getElementById("packed");
    const bytes = Uint8Array.from(atob(packed.textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const unpacked = JSON.parse(await new Response(stream).text());
    packed.remove();
    if (!unpacked.rows.length) {
      notice.textContent = "There are no samples in this page.";
      return null;
    }
    notice.hidden = true;
    return unpacked;
  }

  // -- columns: what is shown, and what is sorted by ----------------------------------------------
  const reference = (row) => (row.reference === null ? null : refs[row.reference]);
  const hasReferences = rows.some((row) => row.reference !== null);
  const columns = [
    { name: "prompt", value: (row) => row.prompt.toLowerCase(), isText: true },
    ...(hasReferences ? [{ name: "reference", isText: true,
      value: (row) => reference(row)?.response.toLowerCase() ?? null }] : []),
    { name: hasReferences ? "policy" : "response", isText: true, value: (row) => row.response.toLowerCase() },
    { name: "score", value: (row) => row.score },
    { name: "KL", value: (row) => row.kl },
    ...rewards.map((name, i) => ({ name, value: (row) => row.rewards[i], isReward: true })),
    { name: "tokens", value: (row) => row.length, isWhole: true },
    { name: "iteration", value: (row) => row.iteration },
  ].filter((column) => rows.some((row) => column.value(row) !== null));
  for (const row of rows) {
    row.all = [row.prompt, row.about, row.response, reference(row)?.response ?? ""].join("\n").toLowerCase();
  }
  const last = new Map();
  for (const row of rows) {
    if (row.split === "eval") last.set(row.run, Math.max(last.get(row.run) ?? 0, row.iteration));
  }
  const WHICH = {
    "last evaluation": (row) => row.split === "eval" && row.iteration === last.get(row.run),
    "all evaluations": (row) => row.split === "eval",
    training: (row) => row.split === "train",
    "highest of their batch": (row) => row.top.length > 0,
    "cut off at the longest": (row) => !row.finished,
    all: () => true,
  };

  // -- what the reader asks for -------------------------------------------------------------------
  const asked = { column: null, isDown: true, page: 0 };
  let found = [];

  function choose() {
    const query = $("query").value.trim().toLowerCase();
    const isOfKind = WHICH[$("which").value];
    const run = $("run").value;
    const column = columns[Number($("number").value)];
    const from = $("from").value === "" ? -Infinity : Number($("from").value);
    const to = $("to").value === "" ? Infinity : Number($("to").value);
    const isBounded = column && (from > -Infinity || to < Infinity);
    found = rows.filter((row) => isOfKind(row)
      && (run === "" || row.run === Number(run))
      && (!isBounded || (column.value(row) !== null && column.value(row) >= from && column.value(row) <= to))
      && (query === "" || row.all.includes(query)));
    if (asked.column) {
      const sign = asked.isDown ? -1 : 1;
      const keyed = found.map((row) => [asked.column.value(row), row]);
      keyed.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null)
        : a < b ? -sign : a > b ? sign : 0));
      found = keyed.map(([, row]) => row);
    }
    asked.page = 0;
    show();
  }

  function show() {
    const size = Number($("size").value);
    const pages = Math.max(1, Math.ceil(found.length / size));
    asked.page = Math.min(asked.page, pages - 1);
    const start = asked.page * size;
    const shown = found.slice(start, start + size);
    $("rows").tBodies[0].replaceChildren(...shown.map(rowOf));
    const held = rows.length + refs.length;
    const left = data.total > held
      ? ` (of the ${many.format(data.total)} that were recorded the page holds ${many.format(held)})` : "";
    $("count").textContent = found.length
      ? `${many.format(start + 1)} to ${many.format(start + shown.length)} of ${many.format(found.length)}${left}`
      : `None of ${many.format(rows.length)} samples fits.`;
    $("previous").disabled = asked.page === 0;
    $("next").disabled = asked.page >= pages - 1;
  }

  // -- a row --------------------------------------------------------------------------------------
  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function cell(className, name) {
    const made = element("td", className);
    made.setAttribute("role", "cell");
    if (name) made.dataset.name = name;
    return made;
  }

  function rowOf(row) {
    const made = element("tr");
    made.setAttribute("role", "row");
    const before = reference(row);
    for (const column of columns) {
      if (column.name === "prompt" && column.isText) {
        const shown = cell("text prompt");
        shown.append(written(row.prompt, {}));
        if (row.about) shown.append(element("small", "", visible(row.about)));
        made.append(shown);
      } else if (column.name === "reference" && column.isText) {
        const shown = cell("text", "reference");
        if (before) shown.append(written(before.response, before.spans), numbers(before));
        made.append(shown);
      } else if (column.isText) {
        const shown = cell("text", column.name);
        shown.append(written(row.response, row.spans));
        if (row.top.length) shown.append(element("small", "", `highest by ${visible(row.top.join(", "))}`));
        made.append(shown);
      } else if (column.name === "iteration" && !column.isReward) {
        const whose = runs.length > 1 ? `${runs[row.run]}, ` : "";
        const of = row.split === "eval" ? "evaluation" : "training";
        made.append(element("td", "where", visible(`${whose}${of} ${row.iteration}`)));
        made.lastChild.setAttribute("role", "cell");
      } else {
        const shown = cell("n", column.name);
        shown.append(inOneWord(column.value(row), column.isWhole));
        made.append(shown);
      }
    }
    return made;
  }

  function numbers(row) {
    return element("small", "", `score ${inOneWord(row.score)}`);
  }

  /** A text with the marks of the rewards that are chosen, long ones cut until asked for. */
  function written(text, spans) {
    const host = element("div");
    host.dir = "auto";
    const draw = (most) => {
      host.replaceChildren(...pieces(text.slice(0, most), spans));
      if (text.length > most) {
        const more = element("button", "", `… all ${many.format(text.length)} characters`);
        more.type = "button";
        more.addEventListener("click", () => draw(Infinity));
        host.append(more);
      }
      if (!text) host.append(element("i", "soft", "empty"));
    };
    draw(LONGEST);
    return host;
  }

  function pieces(text, spans) {
    const ends = offsets(text);
    const inside = []; // [start, end, class, title]
    for (const [reward, credits] of Object.entries(spans)) {
      if (!marked.has(Number(reward))) continue;
      for (const [start, end, credit] of credits) {
        inside.push([ends(start), ends(end), `mark-${reward % 6}${credit < 0 ? " costs" : ""}`,
          `${visible(rewards[reward])} ${credit < 0 ? "−" : "+"}${Math.abs(credit).toPrecision(3)}`]);
      }
    }
    const query = $("query").value.trim().toLowerCase();
    const lower = text.toLowerCase();
    if (query && lower.length === text.length) {
      for (let at = lower.indexOf(query); at >= 0; at = lower.indexOf(query, at + query.length)) {
        inside.push([at, at + query.length, "hit", ""]);
      }
    }
    const cuts = [...new Set([0, text.length, ...inside.flatMap(([a, b]) => [a, b])])]
      .filter((at) => at >= 0 && at <= text.length).sort((a, b) => a - b);
    return cuts.slice(0, -1).map((start, i) => {
      let piece = document.createTextNode(visible(text.slice(start, cuts[i + 1])));
      for (const [from, to, className, title] of inside) {
        if (from <= start && cuts[i + 1] <= to) {
          const mark = element("mark", className);
          if (title) mark.title = title;
          mark.append(piece);
          piece = mark;
        }
      }
      return piece;
    });
  }

  /** From characters, as spans count them, to JavaScript's halves of them. */
  function offsets(text) {
    if (!/[\ud800-\udbff][\udc00-\udfff]/.test(text)) return (at) => Math.min(at, text.length);
    const starts = [];
    let at = 0;
    for (const character of text) {
      starts.push(at);
      at += character.length;
    }
    return (index) => starts[index] ?? text.length;
  }

  /** Control, direction and other unseen characters as symbols, as everywhere in rlalign. */
  function visible(text) {
    return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (character) => {
      const code = character.codePointAt(0);
      if (character === "\n") return "⏎\n";
      if (character === "\t") return "⇥ ";
      if (code === 0x200c || code === 0x200d) return character;
      if (code < 0x20) return String.fromCodePoint(0x2400 + code);
      return code < 0x100 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
    });
  }

  // -- the tools above the table ------------------------------------------------------------------
  const spanned = rewards.map((_, i) => i).filter((i) => [...rows, ...refs].some((row) => row.spans[i]));
  const covered = (i) => {
    let marks = 0, all = 0;
    for (const row of rows.slice(0, 300)) {
      for (const [start, end] of row.spans[i] ?? []) marks += end - start;
      all += row.spans[i] ? row.response.length : 0;
    }
    return marks / Math.max(all, 1);
  };
  // One that marks much of every text would hide the others; it waits for the reader.
  const marked = new Set(spanned.filter((i) => covered(i) < 0.3));

  function options(select, named) {
    select.replaceChildren(...named.map(([value, text]) => {
      const made = element("option", "", visible(text));
      made.value = value;
      return made;
    }));
  }
  options($("run"), [["", "all"], ...runs.map((label, i) => [String(i), label])]);
  $("of-run").hidden = runs.length === 1;
  options($("which"), Object.keys(WHICH).filter((name) => rows.some(WHICH[name])).map((name) => [name, name]));
  options($("number"), [["", "any number"], ...columns.map((c, i) => [String(i), c])
    .filter(([, c]) => !c.isText).map(([i, c]) => [i, c.name])]);
  $("marks").hidden = !spanned.length;
  $("marks").append("Marked:", ...spanned.map((i) => {
    const button = element("button", `mark-${i % 6}`, visible(rewards[i]));
    button.type = "button";
    button.setAttribute("aria-pressed", marked.has(i));
    button.addEventListener("click", () => {
      if (!marked.delete(i)) marked.add(i);
      button.setAttribute("aria-pressed", marked.has(i));
      show();
    });
    return button;
  }));

  const head = element("tr");
  head.setAttribute("role", "row");
  for (const column of columns) {
    const title = element("th", column.isText || column.name === "iteration" ? "" : "n");
    title.setAttribute("role", "columnheader");
    title.scope = "col";
    const button = title.appendChild(element("button", "", visible(column.name)));
    button.type = "button";
    button.addEventListener("click", () => {
      asked.isDown = asked.column === column ? !asked.isDown : !column.isText;
      asked.column = column;
      for (const other of head.children) other.removeAttribute("aria-sort");
      title.setAttribute("aria-sort", asked.isDown ? "descending" : "ascending");
      choose();
    });
    head.append(title);
  }
  $("rows").tHead.append(head);

  let waiting = 0;
  const soon = () => { clearTimeout(waiting); waiting = setTimeout(choose, 80); };
  for (const id of ["query", "from", "to"]) $(id).addEventListener("input", soon);
  for (const id of ["run", "which", "number"]) $(id).addEventListener("change", choose);
  $("size").addEventListener("change", () => { asked.page = 0; show(); });
  for (const [id, step] of [["previous", -1], ["next", 1]]) {
    $(id).addEventListener("click", () => { asked.page += step; show(); });
  }
  addEventListener("keydown", (event) => {
    const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName ?? "");
    if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      $("query").focus();
    }
  });
  $("tools").hidden = false;
  choose();
})();
