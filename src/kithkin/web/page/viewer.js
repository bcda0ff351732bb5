/* Before and after under a divider that is dragged or moved with keys; fit to the frame, or enlarged and moved about. */

const byId = (id) => document.getElementById(id);

export function createViewer() {
  const [frame, viewport, sheet, divider] = ["compare", "viewport", "sheet", "divider"].map(byId);
  const [before, after] = [byId("before"), byId("after")];
  const tags = [byId("tag-before"), byId("tag-after")];
  let size = { width: 1, height: 1 };
  let zoom = "fit";
  let part = 0.5; // Of the visible picture, left of the divider.

  function scale() {
    if (zoom !== "fit") return Number(zoom) / devicePixelRatio;
    return Math.min(viewport.clientWidth / size.width, viewport.clientHeight / size.height, 4);
  }

  /* The visible part of the picture, in pixels of the frame. */
  function visible() {
    const [outer, inner] = [viewport.getBoundingClientRect(), sheet.getBoundingClientRect()];
    const left = Math.max(outer.left, inner.left) - outer.left;
    const right = Math.min(outer.left + viewport.clientWidth, inner.right) - outer.left;
    const top = Math.max(outer.top, inner.top) - outer.top;
    const bottom = Math.min(outer.top + viewport.clientHeight, inner.bottom) - outer.top;
    return { left, right, top, bottom, offset: inner.left - outer.left };
  }

  function draw() {
    if (frame.hidden) return;
    const factor = scale();
    sheet.style.width = `${size.width * factor}px`;
    sheet.style.height = `${size.height * factor}px`;
    sheet.classList.toggle("enlarged", factor * devicePixelRatio > 1.01);
    const larger = zoom !== "fit" && (size.width * factor > viewport.clientWidth || size.height * factor > viewport.clientHeight);
    viewport.classList.toggle("larger", larger);
    place();
  }

  function place() {
    const { left, right, top, bottom, offset } = visible();
    const at = left + part * (right - left);
    after.style.clipPath = `inset(0 0 0 ${at - offset}px)`;
    divider.style.left = `${at}px`;
    divider.style.top = `${top}px`;
    divider.style.height = `${bottom - top}px`;
    // Beside a picture that has no room for both.
    const [first, second] = tags.map((tag) => (right - left < tags[0].offsetWidth + tags[1].offsetWidth + 30 ? -tag.offsetWidth - 6 : 10));
    tags[0].style.left = `${left + first}px`;
    tags[1].style.right = `${viewport.clientWidth - right + second}px`;
    for (const tag of tags) tag.style.top = `${bottom - 34}px`;
    const percent = Math.round(part * 100);
    divider.setAttribute("aria-valuenow", percent);
    divider.setAttribute("aria-valuetext", `${percent} % before, ${100 - percent} % after`);
  }

  function moveTo(clientX) {
    const { left, right } = visible();
    part = Math.min(1, Math.max(0, (clientX - viewport.getBoundingClientRect().left - left) / (right - left)));
    place();
  }

  function drag(target, event, onMove, onEnd = () => {}) {
    target.setPointerCapture(event.pointerId);
    const end = () => {
      target.removeEventListener("pointermove", onMove);
      onEnd();
    };
    target.addEventListener("pointermove", onMove);
    for (const name of ["pointerup", "pointercancel"]) target.addEventListener(name, end, { once: true });
  }

  divider.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    divider.focus({ preventScroll: true });
    drag(divider, event, (move) => moveTo(move.clientX));
  });
  divider.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -0.02, ArrowDown: -0.02, ArrowRight: 0.02, ArrowUp: 0.02, PageDown: -0.1, PageUp: 0.1, Home: -1, End: 1 };
    if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    part = Math.min(1, Math.max(0, part + steps[event.key]));
    place();
  });
  viewport.addEventListener("pointerdown", (event) => {
    if (event.button || event.target === viewport) return;
    if (!viewport.classList.contains("larger")) {
      if (after.hidden) return;
      moveTo(event.clientX);
      drag(viewport, event, (move) => moveTo(move.clientX));
    } else if (event.pointerType === "mouse") {
      event.preventDefault();
      const from = { x: event.clientX + viewport.scrollLeft, y: event.clientY + viewport.scrollTop };
      viewport.classList.add("panning");
      const pan = (move) => viewport.scrollTo(from.x - move.clientX, from.y - move.clientY);
      drag(viewport, event, pan, () => viewport.classList.remove("panning"));
    }
  });
  viewport.addEventListener("scroll", place);
  new ResizeObserver(draw).observe(viewport);

  return {
    /* Show a picture {url, width, height, name} and its restored version's address, or null. */
    show(picture, restored) {
      if (before.getAttribute("src") !== picture.url) {
        before.src = picture.url;
        part = 0.5;
        viewport.scrollTo(0, 0);
      }
      before.alt = `${picture.name} as it came`;
      after.alt = restored ? `${picture.name} restored` : "";
      if (restored && after.getAttribute("src") !== restored) after.src = restored;
      for (const node of [after, divider, ...tags]) node.hidden = !restored;
      size = picture;
      draw();
    },
    /* "fit", or screen pixels a picture's pixel takes; the middle stays where it was. */
    zoomTo(value) {
      const middle = (side, extent) => (viewport[`scroll${side}`] + viewport[`client${extent}`] / 2) / viewport[`scroll${extent}`];
      const [x, y] = [middle("Left", "Width"), middle("Top", "Height")];
      zoom = value;
      draw();
      viewport.scrollTo(x * viewport.scrollWidth - viewport.clientWidth / 2, y * viewport.scrollHeight - viewport.clientHeight / 2);
      place();
    },
    draw,
  };
}
