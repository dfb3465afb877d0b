"""The report as a browser lays it out, in a wide and in a narrow window: nothing cut off, overlapping or fetched."""

import html
import json
import re
import shutil
import subprocess

import pytest

from chinchilla_jax.scaling.report.report import write_report

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.long, pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium")]
# Runs in a copy of the page. `wide` are boxes that scroll sideways, `outside` what leaves the window, `spilled` words
# beyond their own box, `overlapping` neighbours that share room.
SCRIPT = """
<script>
addEventListener("load", () => {
  const width = document.documentElement.clientWidth, name = e => e.tagName + ": " + e.textContent.trim().slice(0, 60);
  const all = selector => [...document.querySelectorAll(selector)], box = e => e.getBoundingClientRect();
  const scrolls = e => e.closest(".scroll, .figure") && !e.matches(".scroll, .figure");
  const found = {
    window: innerWidth, page: document.documentElement.scrollWidth - width,
    outside: all("main, main *").filter(e => !scrolls(e) && box(e).width)
      .filter(e => box(e).left < 0 || box(e).right > width + 1).map(name),
    wide: all(".scroll, .figure").filter(e => e.scrollWidth > e.clientWidth + 1).map(name),
    spilled: all("h1, h2, h3, p, li, td, th, .tag, .verdict div, summary")
      .filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display != "inline").map(name),
    overlapping: all("main, main ul, main details, tr, .verdict").flatMap(parent => {
      const own = [...parent.children].filter(e => box(e).width && getComputedStyle(e).display != "inline");
      return own.slice(1).filter((e, i) => {
        const a = box(own[i]), b = box(e);
        return Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1
          && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1;
      }).map(name);
    }),
    images: all("img").map(e => [e.naturalWidth, Math.round(box(e).width)]),
    tables: all("table").length,
    fetched: performance.getEntriesByType("resource").map(e => e.name.slice(0, 80)).filter(n => !n.startsWith("data:")),
    small: all("main *").filter(e => e.textContent.trim() && parseFloat(getComputedStyle(e).fontSize) < 11).map(name),
  };
  parent.postMessage(JSON.stringify(found), "*");
});
</script>
"""
# A window is never narrower than 500 pixels; a frame is as narrow as it is told to be.
FRAME = """<!doctype html><body style="margin:0"><script>
addEventListener("message", event => {
  const said = document.createElement("pre");
  said.id = "said"; said.textContent = event.data; document.body.append(said);
});
</script><iframe src="%s" style="border:0;width:%dpx;height:2000px"></iframe>"""


def look(page, folder, width):
    """What the script finds in a window of `width` pixels."""
    copy = folder / f"copy{width}.html"
    copy.write_text(page.read_text().replace("</head>", f"{SCRIPT}</head>"))
    frame = folder / f"frame{width}.html"
    frame.write_text(FRAME % (copy.name, width))
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder}/profile{width}",
        "--window-size=1400,2000",
        "--virtual-time-budget=5000",
        "--dump-dom",
        frame.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(html.unescape(re.search(r'<pre id="said">(.*?)</pre>', dom, re.DOTALL).group(1)))


@pytest.fixture(scope="module")
def pages(tmp_path_factory, write_study, figure_4_path):
    """Reports of a study with held-out runs and of a table."""
    root = tmp_path_factory.mktemp("pages")
    study = root / "study"
    study.mkdir()
    write_study(study)
    return {
        "study": write_report(study, replicates=50),
        "table": write_report(figure_4_path, output=root / "table", replicates=50),
    }


@pytest.mark.parametrize("width", [1300, 420])
@pytest.mark.parametrize("which", ["study", "table"])
def test_nothing_is_cut_off_overlaps_or_comes_from_elsewhere(pages, tmp_path, which, width):
    found = look(pages[which], tmp_path, width)
    assert found["window"] == width and found["page"] <= 0
    assert found["outside"] == [] and found["spilled"] == [] and found["overlapping"] == [] and found["small"] == []
    assert found["fetched"] == [] and found["tables"] >= 7
    assert len(found["images"]) == 7 and all(natural > 1000 and shown >= 620 for natural, shown in found["images"])
    if width == 1300:
        assert found["wide"] == []  # at 420 tables and figures scroll in their own boxes


def test_the_look_finds_what_is_wrong(tmp_path):
    page = tmp_path / "report.html"
    wide = "<div class='scroll' style='overflow-x:auto'><table><tr><td style='min-width:3000px'>d</table></div>"
    page.write_text(
        "<!doctype html><html><head><style>body{margin:0}</style></head><body><main><h2>b</h2>"
        "<p style='width:2000px'>a</p><p style='margin-top:-40px'>c</p>"
        f"<img src='https://example.invalid/a.png'>{wide}</main></body></html>"
    )
    found = look(page, tmp_path, 1300)
    assert found["page"] > 0 and found["outside"] and found["overlapping"] and found["wide"]
    assert found["fetched"] == ["https://example.invalid/a.png"]


def test_the_pages_name_no_address_to_load(pages):
    for page in pages.values():
        text = page.read_text()
        assert not re.search(r"<(?:script|link|iframe|object|embed)\b|@import|url\(", text)
        assert set(re.findall(r"\b(?:src|href)=.{6}", text)) == {'src="data:'}
