"use strict";
/* What every script of the page needs: elements, colours, files to keep. */
const all = (root, query) => [...root.querySelectorAll(query)];
const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const asButton = (text, attributes = {}) => make("button", { type: "button", class: "quiet", ...attributes }, text);

/* Give the reader a file. Nothing leaves the page: the address is that of data in memory. */
function keep(content, type, name) {
  const link = make("a", { href: URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/* A file's name from what people read. */
const fileName = (...parts) => parts.join("-").toLowerCase().replace(/[^\p{L}\p{N}.]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 80);
