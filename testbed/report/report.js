"use strict";
(() => {
  const NARROW = 520;
  const PRINT_WIDTH = 680;
  const root = document.documentElement;
  const drawn = new Map();

  // Figures name their colours as var(--x); the style sheet gives the values, for light, dark and print.
  function resolve(value, styles) {
    if (typeof value === "string") {
      return value.replace(/var\((--[a-z0-9-]+)\)/g, (_, name) => styles.getPropertyValue(name).trim());
    }
    if (Array.isArray(value)) return value.map((item) => resolve(item, styles));
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolve(item, styles)]));
    }
    return value;
  }

  function merge(base, extra) {
    const out = { ...base };
    for (const [key, value] of Object.entries(extra ?? {})) {
      const both = value !== null && typeof value === "object" && !Array.isArray(value) && out[key] !== undefined;
      out[key] = both ? merge(out[key], value) : value;
    }
    return out;
  }

  function layoutOf(spec, narrow, width, styles) {
    const colour = (name) => styles.getPropertyValue(name).trim();
    const size = narrow ? 11 : 12.5;
    const axis = {
      gridcolor: colour("--grid"), zerolinecolor: colour("--rule"), linecolor: colour("--rule"),
      tickcolor: colour("--rule"), ticks: "outside", ticklen: 4, automargin: true, fixedrange: narrow,
      title: { standoff: 8, font: { size } },
    };
    const base = {
      width, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size, color: colour("--ink") },
      margin: { l: 8, r: narrow ? 12 : 24, t: 12, b: 8, pad: 2 },
      legend: {
        orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { size },
        title: { font: { size, color: colour("--muted") } },
      },
      hoverlabel: {
        bgcolor: colour("--paper"), bordercolor: colour("--faint"), font: { size: 12, color: colour("--ink") },
        align: "left",
      },
      hovermode: "closest", dragmode: narrow ? false : "zoom", uniformtext: { minsize: narrow ? 9 : 11, mode: "hide" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--faint"), activecolor: colour("--ink") },
    };
    let layout = merge(base, resolve(spec.layout, styles));
    if (narrow) layout = merge(layout, resolve(spec.narrow, styles));
    for (const key of Object.keys({ xaxis: 0, yaxis: 0, ...layout })) {
      if (/^[xy]axis\d*$/.test(key)) layout[key] = merge(axis, layout[key]);
    }
    return layout;
  }

  function draw(box, printing) {
    const width = printing ? PRINT_WIDTH : box.clientWidth;
    if (!width) return;
    const spec = JSON.parse(document.getElementById(`${box.id}-data`).textContent);
    const styles = getComputedStyle(root);
    const narrow = width < NARROW;
    const name = `${document.querySelector(".eyebrow b").textContent}-${box.id}`;
    const config = {
      displaylogo: false, displayModeBar: narrow ? false : "hover", scrollZoom: false,
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
      toImageButtonOptions: { format: "svg", filename: name },
    };
    drawn.set(box, width);
    Plotly.react(box, resolve(spec.data, styles), layoutOf(spec, narrow, width, styles), config);
  }

  const boxes = [...document.querySelectorAll(".plot")];
  // What is hidden is drawn when it is picked.
  const drawAll = (printing) => boxes.forEach((box) => box.closest("[hidden]") || draw(box, printing));
  drawAll(false);
  root.dataset.drawn = String(drawn.size);

  // What is folded away has no width yet: it is drawn when it is opened.
  for (const fold of document.querySelectorAll("details")) {
    fold.addEventListener("toggle", () => {
      if (fold.open) fold.querySelectorAll(".plot").forEach((box) => drawn.has(box) || draw(box, false));
    });
  }
  // Of a pick, one pane is seen: that of the options chosen.
  for (const pick of document.querySelectorAll(".pick")) {
    const panes = [...pick.querySelectorAll(":scope > .pane")];
    const chosen = panes[0].dataset.key.split("-").map(() => "0");
    for (const axis of pick.querySelectorAll("fieldset")) {
      axis.addEventListener("change", (event) => {
        chosen[Number(axis.dataset.axis)] = event.target.value;
        for (const pane of panes) {
          pane.hidden = pane.dataset.key !== chosen.join("-");
          if (!pane.hidden) {
            pane.querySelectorAll(".plot").forEach((box) => drawn.get(box) === box.clientWidth || draw(box, false));
          }
        }
      });
    }
  }

  let waiting = 0;
  window.addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => {
      for (const box of boxes) if (drawn.get(box) !== box.clientWidth) draw(box, false);
    });
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawn.clear();  // what is out of sight has the old colours
    drawAll(false);
  });

  let opened = [];
  window.addEventListener("beforeprint", () => {
    root.classList.add("print");
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((fold) => { fold.open = true; });
    drawAll(true);
  });
  window.addEventListener("afterprint", () => {
    root.classList.remove("print");
    opened.forEach((fold) => { fold.open = false; });
    drawAll(false);
  });

  // A link from the trust strip may lead to something that is folded away.
  function openTarget() {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    const fold = target && target.closest("details");
    if (fold) fold.open = true;
  }
  window.addEventListener("hashchange", openTarget);
  openTarget();

  function sort(table, column, button) {
    const header = button.closest("th");
    const descending = header.getAttribute("aria-sort") === "ascending";
    const numeric = header.classList.contains("num");
    const body = table.tBodies[0];
    const value = (row) => row.cells[column].dataset.value;
    const compare = (a, b) => {
      const [left, right] = [value(a), value(b)];
      if (left === "" || right === "") return (left === "") - (right === "");  // missing values stay at the end
      const order = numeric ? Number(left) - Number(right) : left.localeCompare(right, undefined, { numeric: true });
      return descending ? -order : order;
    };
    [...body.rows].sort(compare).forEach((row) => body.append(row));
    table.querySelectorAll("th").forEach((cell) => cell.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    table.classList.remove("grouped");
  }
  for (const table of document.querySelectorAll(".sortable")) {
    table.querySelectorAll("th button").forEach((button, column) => {
      button.addEventListener("click", () => sort(table, column, button));
    });
  }

  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  function csvOf(table) {
    const heads = [...table.tHead.rows[0].cells].map((cell) => quoted(cell.textContent.trim()));
    const rows = [...table.tBodies[0].rows].map((row) =>
      [...row.cells].map((cell) => quoted(cell.dataset.csv ?? cell.dataset.value)).join(","));
    return [heads.join(","), ...rows].join("\n") + "\n";
  }
  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Some browsers keep the clipboard from pages on disk.
      const area = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const label = button.textContent;
      const { table, text } = button.dataset;
      await copy(table ? csvOf(document.getElementById(table)) : document.getElementById(text).textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = label; }, 1200);
    });
  }
  root.dataset.ready = "yes";
})();
