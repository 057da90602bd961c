// What scrolls can be scrolled from the keyboard; the search and each block's buttons have a name.
const name = () => {
  document.querySelectorAll(".md-typeset__scrollwrap, .md-sidebar__scrollwrap, p:has(> img)").forEach((box) => { box.tabIndex = 0; });
  document.querySelectorAll("[role=dialog]").forEach((box) => box.setAttribute("aria-label", "Search"));
  document.querySelectorAll(".md-code__nav").forEach((box, at) => {
    const label = `Code ${at + 1}`;
    if (box.getAttribute("aria-label") !== label) box.setAttribute("aria-label", label);
  });
  document.querySelectorAll(".md-toggle").forEach((box) => box.setAttribute("aria-label", box.id.replaceAll("_", "")));
};
name();
new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
