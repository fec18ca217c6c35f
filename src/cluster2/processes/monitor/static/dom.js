// Elements without markup. All data (of workers, logs, events) becomes text nodes, never HTML.

/** Make an element. An attribute that is `null` or `false` is left out; `children` are nodes or text. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== null && value !== false) made.setAttribute(name, String(value));
  }
  made.append(...children.map((each) => (each instanceof Node ? each : String(each))));
  return made;
}

/** Return the element with that id. */
export const byId = (id) => document.getElementById(id);

/** Show a text. A write of the same text would cost a layout, so it is skipped. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Set an attribute, or remove it (null), unless it has that value already. */
export function setAttribute(node, name, value) {
  if (value === null) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/** Give an element exactly these children, in this order. A child in its place isn't touched, since a move would lose its focus. */
export function setOrder(parent, nodes) {
  const wanted = new Set(nodes);
  for (const child of [...parent.childNodes]) if (!wanted.has(child)) child.remove();
  let at = parent.firstChild;
  for (const node of nodes) {
    if (node === at) at = at.nextSibling;
    else parent.insertBefore(node, at);
  }
}

/** Have a screen reader say a text. It is removed first, so that the same text is said twice if it comes twice. */
export function announce(text) {
  const region = byId("announcer");
  region.textContent = "";
  setTimeout(() => (region.textContent = text), 50);
}
