"""MLflow's pages as a person sees them: headless Chromium on the store of a real repro and an experiment.

Needs a Chromium with its driver (Debian: chromium, chromium-driver) and the `browser` extra; screenshots are kept in
pytest's temporary folder.
"""

import shutil
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.workspace import Workspace, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("pipeline"),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
SECONDS = 300  # for a page to show what is asked of it; a busy machine takes minutes


@dataclass(frozen=True)
class Page:
    """The browser on MLflow's address."""

    driver: Any
    address: str
    pictures: Path

    def open(self, place: str, name: str, *texts: str) -> str:
        """Go to a page, wait until all `texts` stand on it, keep a picture, and return what it says."""
        self.driver.get(f"{self.address}/#/{place}")
        deadline = time.monotonic() + SECONDS
        while missing := [text for text in texts if text not in (said := self._text())]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
        self.driver.save_screenshot(self.pictures / f"{name}.png")
        assert missing == [], f"{place}: not shown; the page says:\n{said}"
        return said

    def _text(self) -> str:
        return str(self.driver.execute_script("return document.body.innerText"))


@pytest.fixture(scope="module")
def workspace(reproduced_project: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A repro and one experiment."""
    folder = tmp_path_factory.mktemp("browser") / "project"
    shutil.copytree(reproduced_project.folder, folder, symlinks=True)
    workspace = Workspace(folder, reproduced_project.environment)
    workspace.must("dvc", "exp", "run", "-n", "faster", "-S", "train.learning_rate=4e-3")
    workspace.must("python", "-m", "glm2core", "promote")
    return workspace


@pytest.fixture(scope="module")
def page(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    selenium = pytest.importorskip("selenium.webdriver", reason="needs the browser extra: pip install selenium")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    # No sandbox: it can't be set up inside a container, and only this project's own pages are opened.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1600,1400"):
        options.add_argument(argument)
    with serving(workspace, "python -m glm2core ui") as address:
        driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
        try:
            yield Page(driver, address, tmp_path_factory.mktemp("pictures"))
        finally:
            driver.quit()


def test_the_run_list_shows_one_finished_row_an_execution(workspace: Workspace, page: Page) -> None:
    names = [row.info.run_name for row in workspace.runs("execution")]
    assert len(names) == 2
    said = page.open("experiments/1/runs", "runs", "Run Name", "Duration", *names)
    assert "train.parquet" in said  # the dataset
    assert not any(run.info.run_name in said for run in workspace.runs("stage"))  # they are folded into their row


def test_every_figure_is_drawn_for_all_runs_without_configuring_anything(workspace: Workspace, page: Page) -> None:
    names = [row.info.run_name for row in workspace.runs("execution")]
    kept = workspace.runs("execution")[0].data.metrics["convert/rows_kept"]
    shown = ["convert/rows_kept", f"{kept:.2f}", "evaluate", "tokenize", "train", *names]
    page.open("experiments/1/runs?compareRunsMode=CHART", "charts", *shown)


def test_two_runs_compare_by_their_params_and_figures(workspace: Workspace, page: Page) -> None:
    rows = workspace.runs("execution")
    ids = urllib.parse.quote(str([row.info.run_id for row in rows]).replace("'", '"'))
    shown = ["Comparing 2 Runs", *(row.info.run_name for row in rows), "train.learning_rate", "0.003", "0.004"]
    # Of the figures, MLflow draws those that the table's window shows; the rest come when it is scrolled.
    shown += ["evaluate/bleu_4", "evaluate/effective_context_length", "evaluate/retrieval_lines_512", "git_commit"]
    page.open(f"compare-runs?runs={ids}&experiments=%5B%221%22%5D", "comparison", *shown)


def test_a_stages_curves_are_drawn(workspace: Workspace, page: Page) -> None:
    stages = [run for run in workspace.runs("stage") if run.info.run_name.endswith("(faster)")]
    train = next(run for run in stages if run.data.tags["stage"] == "train")
    page.open(f"experiments/1/runs/{train.info.run_id}/model-metrics", "curves", "loss", "learning_rate", "grad_norm")
    deadline = time.monotonic() + SECONDS
    while not (points := page.driver.execute_script("return document.querySelectorAll('.scatterlayer .point').length")):
        assert time.monotonic() < deadline, "no point is drawn"
        time.sleep(0.5)
    assert points >= 6  # steps of a curve
    page.driver.save_screenshot(page.pictures / "curves.png")


def test_a_promoted_model_shows_its_lineage(workspace: Workspace, page: Page) -> None:
    page.open("models/glm2core/versions/1", "model", "Source Run", "dvc exp apply faster", "evaluate/test_loss")
