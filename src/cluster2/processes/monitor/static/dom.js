// Elements without markup: what a worker, a log or an event says becomes a text node, never HTML.

/** An element; `attributes` are set as such (`null` and `false` leave one out), `children` are nodes or text. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== null && value !== false) made.setAttribute(name, String(value));
  }
  made.append(...children.map((each) => (each instanceof Node ? each : String(each))));
  return made;
}

/** The element with that id. */
export const byId = (id) => document.getElementById(id);

/** Show a text; nothing happens if it's shown already. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Set an attribute, or take it away (null); nothing happens if it's so already. */
export function setAttribute(node, name, value) {
  if (value === null) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/** Have exactly these children, in this order. What is in its place isn't touched: to be moved would cost it the focus. */
export function setOrder(parent, nodes) {
  const wanted = new Set(nodes);
  for (const child of [...parent.childNodes]) if (!wanted.has(child)) child.remove();
  let at = parent.firstChild;
  for (const node of nodes) {
    if (node === at) at = at.nextSibling;
    else parent.insertBefore(node, at);
  }
}

/** Have it read out; a text that comes twice is read twice. */
export function announce(text) {
  const region = byId("announcer");
  region.textContent = "";
  setTimeout(() => (region.textContent = text), 50);
}
