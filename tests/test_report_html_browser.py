"""The page of a report in a real browser, on a phone's screen and a desktop's."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from example_reports import all_verdicts

from coatref.conformance.report.html import page

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')  # it keeps every script from running
PROBE = """<script>
const all = selector => [...document.querySelectorAll(selector)];
const blocks = all(".block").map(box => box.getBoundingClientRect());
const ratio = element => {
  const light = text => {
    const parts = text.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255)
      .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const style = getComputedStyle(element);
  const [one, two] = [light(style.color), light(style.backgroundColor)].sort((a, b) => b - a);
  return (one + 0.05) / (two + 0.05);
};
all("details").forEach(box => { box.open = true; });
parent.document.body.append(Object.assign(document.createElement("pre"), {id: "probe", textContent: JSON.stringify({
  inner: innerWidth,
  scroll: document.documentElement.scrollWidth,
  blocks: blocks.filter(box => box.width > 40 && box.height > 20 && box.left >= 0 && box.right <= innerWidth).length,
  wide: all("main *").filter(box => !box.closest(".scroll, svg") && box.getBoundingClientRect().right > innerWidth + 1)
    .map(box => box.tagName + "." + box.getAttribute("class")),
  contrast: Math.min(...all(".block:not(.none)").map(ratio)),
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
  drawings: all("svg").filter(box => box.getBoundingClientRect().height > 5).length,
})}));
</script>"""


# A frame can be as narrow as a phone, and a window cannot; it takes its colours from the page around it.
AROUND = (
    '<!DOCTYPE html><html style="color-scheme: light dark"><body><iframe style="border: 0" {}></iframe></body></html>'
)


def in_browser(text: str, folder: Path, *options: str) -> str:
    """A page's elements, as text, after a browser has read it."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip("needs chromium, which is not installed (apt-get install chromium)")
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    command = [browser, *OPTIONS, f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000", *options]
    run = subprocess.run(
        [*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    return run.stdout


def measured(text: str, folder: Path, width: int, height: int, *options: str) -> dict[str, Any]:
    """What the probe finds on a page on a screen of that size."""
    assert len(POLICY.findall(text)) == 1
    inner = POLICY.sub("", text).replace("</body>", f"{PROBE}</body>")
    frame = f'width="{width}" height="{height}" srcdoc="{html.escape(inner)}"'
    found = re.search(r'<pre id="probe">(.*?)</pre>', in_browser(AROUND.format(frame), folder, *options))
    assert found is not None, "the probe did not run"
    read: dict[str, Any] = json.loads(html.unescape(found[1]))
    return read


@pytest.mark.parametrize("kind", ["fail", "pass", "cannot judge", "hostile"])
@pytest.mark.parametrize("size", [(360, 800), (1280, 800)], ids=["phone", "desktop"])
def test_the_page_fits_its_screen_and_draws_the_network(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    report = all_verdicts()[kind]
    found = measured(page(report), tmp_path, *size)
    assert found["inner"] == size[0]
    assert found["scroll"] <= found["inner"], f"the page scrolls sideways: {found['wide']}"
    assert found["wide"] == []
    assert found["blocks"] == len(report.stages)
    assert found["drawings"] >= (2 if report.results else 0)


@pytest.mark.parametrize(("scheme", "dark"), [("0", True), ("1", False)], ids=["dark", "light"])
def test_figures_can_be_read_on_every_colour(scheme: str, dark: bool, tmp_path: Path) -> None:
    found = measured(
        page(all_verdicts()["fail"]), tmp_path, 360, 800, f"--blink-settings=preferredColorScheme={scheme}"
    )
    assert found["dark"] is dark
    assert found["contrast"] >= 4.5  # WCAG 2.2, 1.4.3


def test_the_page_runs_no_script(tmp_path: Path) -> None:
    script = "<script>document.body.append(document.createElement('mark'))</script></body>"
    text = page(all_verdicts()["pass"]).replace("</body>", script)
    assert "<mark" not in in_browser(text, tmp_path)
    assert "<mark></mark>" in in_browser(POLICY.sub("", text), tmp_path)
