// What a person would see go wrong on a page, measured: text beside the page, and text over text.
() => {
  const clipped = (rect, element) => {
    let { left, top, right, bottom } = rect;
    for (let outer = element; outer && outer !== document.body; outer = outer.parentElement) {
      const { overflowX, overflowY } = getComputedStyle(outer);
      if (overflowX === "visible" && overflowY === "visible") continue;
      const edge = outer.getBoundingClientRect();
      left = Math.max(left, edge.left); right = Math.min(right, edge.right);
      top = Math.max(top, edge.top); bottom = Math.min(bottom, edge.bottom);
    }
    return { left, top, right, bottom };
  };
  const boxes = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest(".unseen, .skip, script, noscript, option")) continue;
    if (!element.checkVisibility({ visibilityProperty: true, contentVisibilityAuto: true })) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const rect of range.getClientRects()) {
      const box = clipped(rect, element);
      if (box.right - box.left > 1 && box.bottom - box.top > 1) boxes.push({ ...box, node, text: node.data.trim() });
    }
  }
  boxes.sort((one, other) => one.top - other.top);
  const overlaps = [];
  boxes.forEach((one, number) => {
    for (let next = number + 1; next < boxes.length && boxes[next].top < one.bottom; next += 1) {
      const other = boxes[next];
      const wide = Math.min(one.right, other.right) - Math.max(one.left, other.left);
      const high = Math.min(one.bottom, other.bottom) - other.top;
      if (one.node !== other.node && wide > 1 && high > 3) overlaps.push(`${one.text} / ${other.text}`);
    }
  });
  const page = document.documentElement;
  const beside = boxes.filter((box) => box.right > page.clientWidth + 1 || box.left < -1).map((box) => box.text);
  return { texts: boxes.length, overflow: page.scrollWidth - page.clientWidth, overlaps, beside };
}
