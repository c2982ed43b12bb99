import base64
import re
from html.parser import HTMLParser


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.targets, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.targets += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "poster")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_report_opens_offline(tiny_run):
    page = (tiny_run / "report.html").read_text()
    parsed = Links()
    parsed.feed(page)
    assert parsed.targets
    assert all(target.startswith("data:image/png;base64,") for target in parsed.targets)
    assert not re.search(r"<script|<link|@import|url\(", page)
    for target in parsed.targets:
        assert base64.b64decode(target.split(",", 1)[1]).startswith(b"\x89PNG")


def test_the_report_holds_what_a_reader_asks_for(tiny_run):
    parsed = Links()
    parsed.feed((tiny_run / "report.html").read_text())
    text = " ".join(parsed.text)
    for needed in (
        "Samples and data",
        "Metrics",
        "floor",
        "Denoising trajectory",
        "Training",
        "Config",
        "Versions",
        "Times",
    ):
        assert needed in text
    assert len(parsed.targets) == 4
    assert "experiment.Train.batch_size = 32" in text
    assert "SW2" in text
    assert "MMD2" in text
    assert "jax" in text
