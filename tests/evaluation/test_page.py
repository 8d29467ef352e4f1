"""report.html without a browser; tests/test_report_browser.py opens it."""

import re
from html.parser import HTMLParser
from pathlib import Path

from glm2core.evaluation.page import MOST_BYTES, write_page
from glm2core.evaluation.page_parts import curves, grid, table
from glm2core.params import load_params
from tests.evaluation.reports import hostile_page, write_reports
from tests.test_architecture import ROOT


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.addresses += [name for name, _ in attributes if name in ("src", "href") or name.startswith("on")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)


def test_every_section_is_there_and_hostile_texts_stay_texts(tmp_path: Path) -> None:
    page = hostile_page(tmp_path).read_text(encoding="utf-8")
    tags = Tags(page)
    assert tags.open == [] and tags.addresses == []
    assert not {"script", "img", "link", "iframe", "a"} & tags.seen
    assert "\\u202egnol\\u2066x\\x07\\x1b[31m" in page and not re.search("[\x00-\x09\x0b-\x1f\u202e\u2066]", page)
    for title in (
        "Before and after",
        "length and depth",
        "Training curves",
        "Worst answers",
        "Missed in",
        "Params that differ",
    ):
        assert f"<h2>{title}" in page or re.search(f"<h2>[^<]*{title}", page), title
    assert "more characters)" in page


def test_the_copy_without_texts_has_the_figures_alone(tmp_path: Path) -> None:
    page = hostile_page(tmp_path, texts=False).read_text(encoding="utf-8")
    assert "the right answer" not in page and "long long" not in page and "Missed in" not in page
    assert "<svg" in page and 'class="grid"' in page


def test_the_same_reports_give_the_same_bytes(tmp_path: Path) -> None:
    assert hostile_page(tmp_path).read_bytes() == hostile_page(tmp_path, name="again.html").read_bytes()


def test_a_page_of_an_evaluation_that_asked_nothing_has_its_params(tmp_path: Path) -> None:
    write_page(tmp_path, tmp_path, {"test_loss": 2.0}, load_params(ROOT / "params.yaml"), tmp_path / "x.html", True)
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "<b>2.000</b>" in page and "Params that differ" in page and "<svg" not in page


def test_sections_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    metrics = write_reports(tmp_path)
    lines = [f"lines,{512 + length},{depth},1,1,1" for length in range(300) for depth in range(300)]
    (tmp_path / "retrieval_grid.csv").write_text("\n".join(["task,length,depth,cases,right,accuracy", *lines]))
    write_page(tmp_path, tmp_path, metrics, load_params(ROOT / "params.yaml"), tmp_path / "x.html", True)
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert len(page.encode()) <= MOST_BYTES
    assert "1 more sections are left out" in page and "Params that differ" in page


def test_cells_are_coloured_by_their_share_and_cut() -> None:
    cells = grid("depth", ["512"], [("0.5", [0.0]), ("0.7", [1.0]), ("0.9", [None])])
    assert re.findall(r"rgb\((.*?)\);color:#111\">(\d+)", cells) == [("244,165,130", "0"), ("146,197,222", "100")]
    assert "<td></td>" in cells
    assert "(9,600 more characters)" in table(["", "a"], [["", "x" * 10_000]])


def test_a_curve_ends_at_its_last_point_and_is_thinned() -> None:
    assert curves({"loss": []}, "step") == ""
    drawn = curves({"loss": [(float(step), 4.0 - step / 1000) for step in range(4001)]}, "step")
    (way,) = re.findall('class="line k0" d="M(.*?)"', drawn)
    points = way.split("L")
    assert points[-1] == "628.0 212.0" and 200 < len(points) <= 300
    assert '"line k0" d="M56.0 12.0h0"' in curves({"loss": [(5.0, 1.0)]}, "step")
