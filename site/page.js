// What is wrong with the page as it is shown now; returned as a list of sentences to check.py.
const done = arguments[arguments.length - 1];
const problems = [];

function rgba(text) {
  const parts = (text.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const scale = text.startsWith("color(") ? 255 : 1; // color(srgb 0.1 0.2 0.3)
  return [parts[0] * scale, parts[1] * scale, parts[2] * scale, parts.length > 3 ? parts[3] : 1];
}

function over(top, below) {
  return [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
}

function background(element) {
  const layers = [];
  for (let e = element; e; e = e.parentElement) {
    const colour = rgba(getComputedStyle(e).backgroundColor);
    if (colour[3] > 0) layers.push(colour);
    if (colour[3] === 1) break;
  }
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
}

function luminance(colour) {
  const [r, g, b] = colour.slice(0, 3).map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// WCAG 2.1, level AA: 4.5, and 3 for large text.
function contrast() {
  const seen = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.textContent.trim() || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (element.closest("script, style, noscript, svg, mjx-assistive-mml, option")) continue;
    const box = element.getBoundingClientRect(), style = getComputedStyle(element);
    if (box.width < 2 || box.height < 2) continue;
    const below = background(element), text = over(rgba(style.color), below);
    const [light, dark] = [luminance(text), luminance(below)].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) {
      seen.set(`${style.color} on ${below.slice(0, 3).map(Math.round)}`,
        `contrast ${ratio.toFixed(2)}: "${node.textContent.trim().slice(0, 40)}" (${element.tagName} ${element.className})`);
    }
  }
  seen.forEach((what, colours) => problems.push(`${what} ${colours}`));
}

function wide() {
  const page = document.scrollingElement;
  if (page.scrollWidth > window.innerWidth + 1) {
    const worst = [...document.querySelectorAll("main *")].filter(e => e.getBoundingClientRect().right > window.innerWidth + 1);
    problems.push(`scrolls sideways: ${page.scrollWidth} > ${window.innerWidth} px (${worst[0]?.tagName} ${worst[0]?.className})`);
  }
}

async function main() {
  // A colour in the middle of a transition is none that anybody reads.
  document.head.appendChild(document.createElement("style")).textContent = "*, ::before, ::after { transition: none !important; }";
  const images = [...document.images];
  images.forEach(image => { image.loading = "eager"; });
  await Promise.all(images.map(image => image.decode().catch(() => problems.push(`broken image ${image.src}`))));
  images.filter(image => !image.alt.trim()).forEach(image => problems.push(`no alternative text: ${image.src}`));
  const formulas = document.querySelectorAll(".math").length;
  if (formulas) {
    await window.MathJax?.startup?.promise;
    const drawn = document.querySelectorAll("mjx-container svg").length;
    if (drawn < formulas) problems.push(`${drawn} of ${formulas} formulas drawn`);
    document.querySelectorAll("[data-mml-node='merror']").forEach(e => problems.push(`formula: ${e.textContent.slice(0, 60)}`));
  }
  performance.getEntriesByType("resource").filter(entry => entry.name.startsWith("http"))
    .forEach(entry => problems.push(`asks the network for ${entry.name}`));
  contrast();
  wide();
  done({ problems, formulas, images: images.length });
}

main().catch(error => done({ problems: [`the check itself failed: ${error}`], formulas: 0, images: 0 }));
