"""The report in a browser: it fits a screen and a phone, needs nothing but the file, and says nothing on the console."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from tests.run.conftest import with_sets

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless", "chrome-headless-shell")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(BROWSERS)}")

# Before the page: what goes wrong is collected. A file has no network of its own, so a policy that allows nothing but what lies
# in the page turns every other request into a violation that is seen here.
FIRST = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline';
script-src 'unsafe-inline'"><script>
const seen = [];
addEventListener('error', event => seen.push('error: ' + (event.message || event.target.outerHTML.slice(0, 80))), true);
addEventListener('unhandledrejection', event => seen.push('rejection: ' + event.reason));
addEventListener('securitypolicyviolation', event => seen.push('request: ' + event.blockedURI));
for (const name of ['error', 'warn']) { console[name] = (...words) => seen.push(name + ': ' + words.join(' ')); }
</script>"""
# After it, in a frame of the wanted width: a window of a headless browser is never narrower than some 500 pixels.
LAST = """<script>
addEventListener('load', () => {
  document.querySelectorAll('details').forEach(part => part.open = true);
  const root = document.documentElement, scroll = [], outside = [];
  for (const part of document.body.querySelectorAll('*')) {
    if (part.scrollWidth > part.clientWidth + 1 && getComputedStyle(part).overflowX !== 'visible') scroll.push(part.className);
    const wrapped = part.closest('.wide') && part.className !== 'wide';
    if (!wrapped && part.getBoundingClientRect().right > root.clientWidth + 1) outside.push(part.tagName + ' ' + part.className);
  }
  parent.postMessage({
    width: root.clientWidth, scrollWidth: root.scrollWidth, scroll, outside, seen,
    requests: performance.getEntriesByType('resource').map(entry => entry.name).filter(name => !name.startsWith('data:')),
    broken: [...document.images].filter(image => !image.naturalWidth).length, images: document.images.length,
  }, '*');
});
</script>"""
FRAME = """<!doctype html><meta charset="utf-8"><body style="margin:0"><pre id="found"></pre><script>
addEventListener('message', event => { document.getElementById('found').textContent = JSON.stringify(event.data); });
</script><iframe style="border:0;width:%dpx;height:900px" srcdoc="%s"></iframe></body>"""


def run_browser(folder, *arguments):
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", f"--user-data-dir={folder / 'profile'}", *map(str, arguments),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def looked_at(page, width, folder):
    """What a browser finds in a page ``width`` pixels wide."""
    head, rest = page.split("<head>", 1)
    changed = head + "<head>" + FIRST + rest.replace("</body>", LAST + "</body>")
    path = folder / "frame.html"
    path.write_text(FRAME % (width, html.escape(changed)), encoding="utf-8")
    out = run_browser(folder, "--virtual-time-budget=10000", "--window-size=1400,1000", "--dump-dom", path.as_uri()).stdout
    return json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', out, re.DOTALL).group(1)))


@pytest.fixture(scope="module")
def pages(tiny_run, tmp_path_factory):
    """The reports of points, and of images with many sets, long names and a diagnostic."""
    from scorelab.run.cli import main

    folder = tmp_path_factory.mktemp("pages")
    (folder / "images.gin").write_text(IMAGES)
    command = ["run", str(folder / "images.gin"), *with_sets(*SMALL), "--workdir", str(folder / "run")]
    assert main(command) == 0
    return {"points": (tiny_run / "report.html").read_text(), "images": (folder / "run" / "report.html").read_text()}


IMAGES = """from __gin__ import dynamic_registration

from scorelab import experiment

include 'quickstart.gin'

experiment.Experiment.stages = (
    @experiment.Train(), @experiment.Sample(), @experiment.Evaluate(), @second/experiment.Sample(),
    @experiment.Diagnose(), @experiment.Report())
second/experiment.Sample.name = 'a-set-with-a-name-that-is-as-long-as-names-of-sets-may-be-in-a-folder'
experiment.Diagnose.questions = (@experiment.ExplainedVariance(),)
experiment.ExplainedVariance:
    n = 16
    levels = 3
"""
SMALL = (
    "nets.MLP.width = 8", "nets.MLP.depth = 1", "STEPS = 30", "WARMUP = 2", "experiment.Train.checkpoint_every = 10",
    "experiment.Train.log_every = 1", "experiment.Sample.n = 20", "experiment.ImageEvaluation.n = 20", "grids.Karras.steps = 6",
    "experiment.Sample.shown = 20",
)  # fmt: skip


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("kind", ["points", "images"])
def test_the_report_fits_and_needs_nothing_else(pages, kind, width, tmp_path):
    found = looked_at(pages[kind], width, tmp_path)
    assert found["width"] == width
    assert found["scrollWidth"] == width
    assert found["outside"] == []
    assert set(found["scroll"]) <= {"wide"}
    assert found["seen"] == []
    assert found["requests"] == []
    assert found["images"] >= 7
    assert found["broken"] == 0
    if width == 400 and kind == "images":
        # Tables are as wide as their words, and are moved inside their own frame.
        assert "wide" in found["scroll"]


def test_what_is_wrong_with_a_page_is_found(tmp_path):
    """The test above can fail: a page with each of its faults."""
    page = (
        "<!doctype html><html><head></head><body style='margin:0'><div style='width:700px'>wide</div>"
        "<img src='http://127.0.0.1:9/none.png'><script>undefined_name</script></body></html>"
    )
    found = looked_at(page, 400, tmp_path)
    assert found["scrollWidth"] == 700
    assert found["outside"] == ["DIV "]
    assert found["broken"] == 1
    assert any("127.0.0.1" in text for text in found["seen"])
    assert any("undefined_name" in text for text in found["seen"])


def test_it_is_not_blank(pages, tmp_path):
    from PIL import Image

    (tmp_path / "report.html").write_text(pages["images"], encoding="utf-8")
    run_browser(tmp_path, "--window-size=1280,900", f"--screenshot={tmp_path / 'shot.png'}", (tmp_path / "report.html").as_uri())
    with Image.open(tmp_path / "shot.png") as shot:
        assert shot.size == (1280, 900)
        assert len(np.unique(np.asarray(shot.convert("L")))) > 50
