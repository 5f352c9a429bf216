"""Look at every built page: python site/check.py [--screenshots FOLDER].

First the files (links.py). Then a headless Chromium opens each page from the disk, in light, in dark and at a phone's
width: no errors in the console, pictures and formulas drawn, alternative texts, contrast, no sideways scrolling; and
the search finds what is there. Before all that, bad.html must be found bad in every one of these ways.
"""

import argparse
import sys
from pathlib import Path

from browser import DESKTOP, PHONE, chromium, console_errors, missing, resize
from links import broken

HERE = Path(__file__).resolve().parent
HTML = HERE / "_build" / "html"
SCRIPT = (HERE / "page.js").read_text(encoding="utf-8")
LOOKS = {"light": ("light", DESKTOP), "dark": ("dark", DESKTOP), "phone": ("light", PHONE)}
SHOWN = ("index", "notebooks/03_hessian_spectra", "notebooks/01_sam", "gallery", "scoreboard", "api/optim")
BAD = ("contrast", "scrolls sideways", "broken image", "no alternative text", "formulas drawn", "an error of the page",
       "asks the network", "no such file: nowhere.html", "no such place: #nothing")
FOUND = """const done = arguments[0]; let last = -1;
const timer = setInterval(() => {
  const state = document.querySelector('#search-results p')?.textContent.trim();
  const now = document.querySelectorAll('#search-results li').length;
  if (state && now === last) { clearInterval(timer); done(now); }
  last = now;
}, 700);"""


def pages() -> list[Path]:
    """Return the built pages; the theme's own scraps are none."""
    return sorted(file for file in HTML.rglob("*.html") if "_static" not in file.parts)


def looked_at(browser, file: Path, look: str) -> dict:
    """Return what ``page.js`` finds on a page in one of :data:`LOOKS`, and the errors of the console."""
    theme, size = LOOKS[look]
    resize(browser, size)
    browser.get(file.as_uri())
    browser.execute_script(f"Object.assign(document.documentElement.dataset, {{theme: '{theme}', mode: '{theme}'}})")
    found = browser.execute_async_script(SCRIPT)
    found["problems"] += console_errors(browser)
    return found


def control_problems(browser) -> list[str]:
    """Return a sentence for each fault of the bad page that is not seen."""
    seen = " ".join([*looked_at(browser, HERE / "bad.html", "phone")["problems"], *broken(HERE, [HERE / "bad.html"])])
    return [f"the check is blind: '{fault}' of the bad page is not seen" for fault in BAD if fault not in seen]


def search_problems(browser) -> list[str]:
    """Return what is wrong with the search: a word that is there is found, one that is not is not."""
    problems = []
    for word, there in (("Lanczos", True), ("zyxwvut", False)):
        browser.get(f"{(HTML / 'search.html').as_uri()}?q={word}")
        found = browser.execute_async_script(FOUND)
        if (found > 0) != there:
            problems.append(f"search for {word}: {found} results")
    return problems + console_errors(browser)


def main() -> int:
    """Check, print what is wrong, and return 1 if anything is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--screenshots", type=Path, help="also save pictures of some pages there")
    folder = parser.parse_args().screenshots
    files = pages()
    if not files:
        sys.exit("There is no site yet. Build it: make site")
    problems, formulas, images = broken(HTML, files), 0, 0
    if said := missing():
        print(*problems, said, sep="\n")
        return bool(problems)
    with chromium() as browser:
        problems += control_problems(browser)
        for file in files:
            for look in LOOKS:
                found = looked_at(browser, file, look)
                problems += [f"{file.relative_to(HTML)} ({look}): {what}" for what in found["problems"]]
                if folder and (name := file.relative_to(HTML).with_suffix("").as_posix()) in SHOWN:
                    browser.save_screenshot(str(folder / f"site_{name.replace('/', '_')}_{look}.png"))
            formulas, images = formulas + found["formulas"], images + found["images"]
        problems += search_problems(browser)
    print(*dict.fromkeys(problems), sep="\n")
    print(f"{len(files)} pages in {len(LOOKS)} looks, {formulas} formulas, {images} pictures: {len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
