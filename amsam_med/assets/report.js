"use strict";
(() => {
  const PER_PAGE = 60;
  // What can be sorted by: a column, its name for readers, its unit.
  const SORTS = [
    { column: "file", label: "File" },
    { column: "area_percent", label: "Area" },
    { column: "certainty", label: "Certainty" },
    { column: "predicted_iou", label: "Predicted IoU" },
    { column: "box_confidence", label: "Box confidence" },
  ];
  const byId = (id) => document.getElementById(id);
  const count = (number) => number.toLocaleString("en");
  const plural = (number) => `${count(number)} ${number === 1 ? "picture" : "pictures"}`;

  const pictures = JSON.parse(byId("pictures").textContent).map(prepare);
  const state = { filter: "all", text: "", from: NaN, to: NaN, sort: "file", up: true, page: 0 };
  let shown = pictures; // what passes the filters, in order
  let viewed = -1; // place in `shown` of the picture in full view

  function prepare(row, index) {
    const cells = row.cells;
    const file = cells.file ?? "";
    return {
      index, cells, links: row.links,
      name: visible(file) + (cells.picture ? ` · picture ${visible(cells.picture)}` : ""),
      key: file.normalize("NFC").toLowerCase(),
      flags: visible(cells.flags ?? "").split(";").map((word) => word.trim()).filter(Boolean),
      error: cells.error ?? "",
      numbers: Object.fromEntries(SORTS.slice(1).map((sort) => [sort.column, number(cells[sort.column])])),
    };
  }

  function number(text) {
    return text === undefined || text.trim() === "" ? NaN : Number(text);
  }

  // Control characters become pictures of themselves, so that a name is one line and hides nothing; bytes that are
  // no text, which Python hands on as lone surrogates, become the sign for that.
  function visible(text) {
    return text.replace(/\p{Surrogate}/gu, "\ufffd").replace(/[\u0000-\u001f\u007f]/g, (one) =>
      one === "\u007f" ? "\u2421" : String.fromCharCode(0x2400 + one.charCodeAt(0)));
  }

  // Places in the order of names in which a2 comes before a10; reckoned once, as comparing names is slow.
  function rankFiles() {
    const collator = new Intl.Collator("en", { numeric: true });
    const order = [...pictures].sort((a, b) =>
      collator.compare(a.key, b.key) || number(a.cells.picture) - number(b.cells.picture) || a.index - b.index);
    order.forEach((picture, rank) => { picture.numbers.file = rank; });
  }

  // The folder that all pictures are in; cards leave it out.
  function sharedFolder() {
    let shared = pictures.length ? pictures[0].name : "";
    for (const { name } of pictures) {
      while (!name.startsWith(shared)) shared = shared.slice(0, -1);
    }
    return shared.slice(0, shared.lastIndexOf("/") + 1);
  }

  // ---- filters and order

  function filters() {
    const totals = new Map();
    for (const word of pictures.flatMap((picture) => picture.flags)) totals.set(word, (totals.get(word) ?? 0) + 1);
    const words = [...totals.keys()].sort((a, b) => totals.get(b) - totals.get(a));
    const all = [
      ["all", "All", () => true],
      ["flagged", "Flagged", (picture) => picture.flags.length > 0],
      ...words.map((word) => [`flag ${word}`, word, (picture) => picture.flags.includes(word)]),
      ["not found", "No detection", (picture) => picture.cells.box_source === "not found"],
      ["failed", "Failed", (picture) => picture.error !== ""],
    ];
    return all.map(([id, label, accepts]) => ({ id, label, accepts, total: pictures.filter(accepts).length }))
      .filter((filter) => filter.id === "all" || filter.total > 0);
  }

  function select() {
    const text = state.text.normalize("NFC").toLowerCase();
    const accepts = FILTERS.find((filter) => filter.id === state.filter).accepts;
    const outside = (area) => area < state.from || area > state.to ||
      (Number.isNaN(area) && !(Number.isNaN(state.from) && Number.isNaN(state.to)));
    shown = pictures.filter((picture) =>
      accepts(picture) && picture.key.includes(text) && !outside(picture.numbers.area_percent));
    const sign = state.up ? 1 : -1;
    shown.sort((a, b) => {
      const [x, y] = [a.numbers[state.sort], b.numbers[state.sort]];
      // What has no number comes last, whichever way the rest is sorted.
      return Number.isNaN(x) - Number.isNaN(y) || (sign * (x - y) || 0) || a.numbers.file - b.numbers.file;
    });
  }

  function isFiltered() {
    return state.filter !== "all" || state.text !== "" || !Number.isNaN(state.from) || !Number.isNaN(state.to);
  }

  function update() {
    select();
    state.page = 0;
    drawPage();
    byId("clear").disabled = !isFiltered();
    for (const button of byId("filters").children) {
      button.setAttribute("aria-pressed", String(button.dataset.filter === state.filter));
    }
    byId("direction").textContent = state.up ? "↑ Ascending" : "↓ Descending";
  }

  // ---- cards

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function thumbnail(picture) {
    const data = byId(`t${picture.index}`);
    return data ? `data:image/jpeg;base64,${data.textContent}` : "";
  }

  function values(picture) {
    const { area_percent: area, certainty } = picture.numbers;
    const words = [];
    if (!Number.isNaN(area)) words.push(`area ${area.toFixed(area < 1 ? 2 : 1)} %`);
    if (!Number.isNaN(certainty)) words.push(`certainty ${certainty.toFixed(2)}`);
    return words.map((text) => element("span", "value", text));
  }

  function flagList(picture) {
    const list = element("span", "flags");
    list.append(...picture.flags.map((word) => element("span", "flag", word)));
    return list;
  }

  function frame(picture) {
    const box = element("span", "picture");
    const source = thumbnail(picture);
    if (source) {
      const image = element("img");
      image.alt = "";
      image.decoding = "async";
      image.src = source;
      box.append(image);
    } else if (picture.error) {
      box.textContent = "Failed";
    } else {
      box.textContent = document.readyState === "loading" ? "" : "No thumbnail";
    }
    return box;
  }

  function card(picture, place) {
    const button = element("button", picture.error ? "card failed" : "card");
    button.type = "button";
    button.append(frame(picture));
    const folder = picture.name.slice(SHARED_FOLDER.length, picture.name.lastIndexOf("/") + 1);
    if (folder) button.append(element("span", "name folder", folder));
    button.append(element("span", "name", picture.name.slice(SHARED_FOLDER.length + folder.length)), ...values(picture));
    if (picture.flags.length) button.append(flagList(picture));
    if (picture.error) button.append(element("span", "error", visible(picture.error)));
    button.addEventListener("click", () => openView(place));
    const item = element("li");
    item.append(button);
    return item;
  }

  function drawPage() {
    const start = state.page * PER_PAGE;
    const page = shown.slice(start, start + PER_PAGE);
    byId("cards").replaceChildren(...page.map((picture, offset) => card(picture, start + offset)));
    document.querySelectorAll(".pages").forEach(drawPages);
    const found = isFiltered() ? `${count(shown.length)} of ${plural(pictures.length)}` : plural(pictures.length);
    const part = page.length < shown.length ? `; ${count(start + 1)} to ${count(start + page.length)} are shown` : "";
    byId("found").textContent = found + part;
  }

  // ---- pages

  function pageCount() {
    return Math.max(1, Math.ceil(shown.length / PER_PAGE));
  }

  function drawPages(nav) {
    const last = pageCount() - 1;
    const { first, back, input, total, forth, end } = nav.parts;
    nav.hidden = last === 0;
    first.disabled = back.disabled = state.page === 0;
    forth.disabled = end.disabled = state.page === last;
    input.value = state.page + 1;
    input.max = last + 1;
    total.textContent = `of ${count(last + 1)}`;
  }

  function turn(page) {
    state.page = Math.min(Math.max(Math.trunc(page) || 0, 0), pageCount() - 1);
    drawPage();
  }

  function makePages(nav, isBelow) {
    const button = (text, label, page) => {
      const made = element("button", "", text);
      made.type = "button";
      made.setAttribute("aria-label", label);
      made.addEventListener("click", () => {
        turn(page());
        if (isBelow) byId("gallery").scrollIntoView();
        if (made.disabled) input.focus({ preventScroll: true }); // a disabled button would drop the focus
      });
      return made;
    };
    const input = element("input");
    input.type = "number";
    input.min = 1;
    input.setAttribute("aria-label", "Page");
    input.addEventListener("change", () => turn(input.value - 1));
    nav.parts = {
      first: button("«", "First page", () => 0),
      back: button("‹", "Previous page", () => state.page - 1),
      input,
      total: element("span"),
      forth: button("›", "Next page", () => state.page + 1),
      end: button("»", "Last page", () => pageCount() - 1),
    };
    const { first, back, total, forth, end } = nav.parts;
    nav.append(first, back, element("span", "", "Page"), input, total, forth, end);
  }

  // ---- full view

  function openView(place) {
    drawView(place);
    byId("view").showModal();
    byId("close").focus();
  }

  function drawView(place) {
    viewed = place;
    const picture = shown[place];
    byId("view-title").textContent = picture.name;
    byId("view-place").textContent = `${count(place + 1)} of ${count(shown.length)}`;
    byId("view-about").replaceChildren(...about(picture));
    document.querySelector(".about").scrollTop = 0;
    drawStage(picture);
    const focused = document.activeElement;
    byId("previous").disabled = place === 0;
    byId("next").disabled = place === shown.length - 1;
    if (focused.disabled) byId("close").focus(); // a disabled button would drop the focus
  }

  // The picture is a new element each time: one whose file is slow to come must not show the picture before it.
  function drawStage(picture) {
    if (!picture.links.overlay) {
      byId("stage").replaceChildren(...smallPicture(picture, "There is no overlay file of this picture."));
      return;
    }
    const image = element("img");
    image.alt = `${picture.name} with the outline of the object`;
    image.addEventListener("error", () =>
      image.replaceWith(...smallPicture(picture, "The overlay file is not beside this page.")));
    image.src = picture.links.overlay;
    byId("stage").replaceChildren(image);
  }

  function smallPicture(picture, reason) {
    if (picture.error) return [element("p", "", "There is no result of this picture.")];
    const source = thumbnail(picture);
    if (!source) return [element("p", "", reason)];
    const image = element("img", "small");
    image.alt = `Thumbnail of ${picture.name} with the outline of the object`;
    image.src = source;
    return [image, element("p", "quiet", `${reason} This is its thumbnail.`)];
  }

  function about(picture) {
    const parts = [];
    if (picture.error) parts.push(element("p", "error", visible(picture.error)));
    if (picture.flags.length) parts.push(flagList(picture));
    if (Object.keys(picture.links).length) parts.push(linkList(picture.links));
    const body = element("tbody");
    const { file, flags, error, image_sha256: digest, ...rest } = picture.cells;
    if (digest) rest.image_sha256 = digest; // long, and rarely read: last
    for (const [column, text] of Object.entries(rest)) {
      const row = element("tr");
      const head = element("th", "", column.replaceAll("_", " "));
      head.scope = "row";
      row.append(head, element("td", "", visible(text)));
      body.append(row);
    }
    const table = element("table");
    table.append(body);
    return [...parts, table];
  }

  function linkList(links) {
    const list = element("ul");
    for (const [name, address] of Object.entries(links)) {
      const item = element("li");
      const link = element("a", "", `Open ${name.replaceAll("_", " ")}`);
      link.href = address;
      link.target = "_blank";
      link.rel = "noopener";
      item.append(link);
      list.append(item);
    }
    return list;
  }

  function step(by) {
    const place = viewed + by;
    if (place >= 0 && place < shown.length) drawView(place);
  }

  // The card of the picture seen last gets the focus, on whichever page it is.
  function leaveView() {
    const page = Math.floor(viewed / PER_PAGE);
    if (page !== state.page) turn(page);
    byId("cards").children[viewed % PER_PAGE].firstElementChild.focus();
  }

  // ---- start

  function makeFilters() {
    byId("filters").append(...FILTERS.map((filter) => {
      const button = element("button", "", `${filter.label} ${count(filter.total)}`);
      button.type = "button";
      button.dataset.filter = filter.id;
      button.addEventListener("click", () => { state.filter = filter.id; update(); });
      return button;
    }));
  }

  function makeSorts() {
    const has = (column) => pictures.some((picture) => !Number.isNaN(picture.numbers[column]));
    byId("sort").append(...SORTS.filter((sort) => has(sort.column)).map((sort) => new Option(sort.label, sort.column)));
    byId("area-range").hidden = !has("area_percent");
  }

  function clear() {
    Object.assign(state, { filter: "all", text: "", from: NaN, to: NaN });
    for (const id of ["search", "area-from", "area-to"]) byId(id).value = "";
    update();
    byId("search").focus();
  }

  function listen() {
    byId("search").addEventListener("input", (event) => { state.text = event.target.value; update(); });
    byId("area-from").addEventListener("input", (event) => { state.from = event.target.valueAsNumber; update(); });
    byId("area-to").addEventListener("input", (event) => { state.to = event.target.valueAsNumber; update(); });
    byId("sort").addEventListener("change", (event) => { state.sort = event.target.value; update(); });
    byId("direction").addEventListener("click", () => { state.up = !state.up; update(); });
    byId("clear").addEventListener("click", clear);
    byId("previous").addEventListener("click", () => step(-1));
    byId("next").addEventListener("click", () => step(1));
    byId("close").addEventListener("click", () => byId("view").close());
    byId("view").addEventListener("close", leaveView);
    byId("view").addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
      if (event.key === "ArrowLeft") step(-1);
      else if (event.key === "ArrowRight") step(1);
      else return;
      event.preventDefault();
    });
  }

  const FILTERS = filters();
  const SHARED_FOLDER = sharedFolder();
  rankFiles();
  makeFilters();
  makeSorts();
  document.querySelectorAll(".pages").forEach(makePages);
  listen();
  update();
  byId("tools").hidden = pictures.length === 0;
  // Thumbnails come after this script in the file: cards drawn before the whole file is read get theirs now.
  document.addEventListener("DOMContentLoaded", () => {
    const start = state.page * PER_PAGE;
    document.querySelectorAll("#cards .picture").forEach((box, offset) => box.replaceWith(frame(shown[start + offset])));
  });
})();
