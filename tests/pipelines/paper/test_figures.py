"""The paper's figures: drawn from cells, as vectors and as pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from amsam_med import weights
from amsam_med.errors import DataError
from amsam_med.synthetic import write_dermoscopy
from pipelines.paper import figures
from pipelines.paper.cells import Bench, Workspace
from pipelines.paper.store import Store
from pipelines.paper.tasks import TASKS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a small isic2018 of synthetic images."""
    root = tmp_path_factory.mktemp("data")
    for seed, part in enumerate(("train", "val", "test")):
        write_dermoscopy(root / "isic2018" / part, 4, seed=seed, size=(72, 96))
    return root


@pytest.fixture
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of two epochs, and of no more drawn lesions than they need."""
    quick = {name: job._replace(settings={**job.settings, "epochs": 2}) for name, job in figures.SIDES.items()}
    monkeypatch.setattr(figures, "SIDES", quick)
    monkeypatch.setattr(figures, "ALPHA_SETTINGS", {"epochs": 1, "views": "none"})
    monkeypatch.setattr(figures, "ALPHAS", (0.0, 1.0))
    monkeypatch.setattr(figures, "DRAWN", {"train": (4, 1), "test": (1, 2)})
    monkeypatch.setattr(figures, "FIGURE_5_SHOTS", 4)
    monkeypatch.setattr(figures, "FIGURE_6_SHOTS", 4)


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize("name", ["figure1", "figure4", "figure5", "figure6"])
def test_a_figure_is_drawn_as_vectors_and_pixels(name: str, data: Path, tmp_path: Path) -> None:
    words = [name, "--data", str(data), "-o", str(tmp_path), "--base", "tiny", "--device", "cpu", "--seeds", "1"]
    figures.main([*words, "--sets", "isic2018", "--images", "2", "--shots", "4"])
    drawn = sorted(path for path in (tmp_path / "figures").iterdir())
    assert [path.suffix for path in drawn] == [".pdf", ".png"]
    assert drawn[0].read_bytes().startswith(b"%PDF")
    with Image.open(drawn[1]) as picture:
        assert min(picture.size) > 300


@pytest.mark.usefixtures("quick_figures")
def test_panels_of_drawn_lesions_need_no_data(tmp_path: Path) -> None:
    words = ["figure4", "--drawn", "-o", str(tmp_path), "--base", "tiny", "--device", "cpu", "--shots", "4"]
    figures.main([*words, "--images", "1"])
    assert [path.name for path in sorted((tmp_path / "figures").iterdir())] == [
        "figure4-drawn-tiny.pdf",
        "figure4-drawn-tiny.png",
    ]
    with pytest.raises(DataError, match="figure5 is not made of drawn lesions"):
        figures.main(["figure5", *words[1:]])


@pytest.mark.usefixtures("quick_figures")
def test_a_curve_is_computed_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Workspace(data, tmp_path, "tiny", weights.find("tiny"))
    store, bench = Store(tmp_path), Bench("isic2018", place, "val")
    job = figures.SIDES["BLO-SAM"]
    first = figures.learning_curve(bench, store, job, 4, 0)
    assert list(first) == [1, 2]
    monkeypatch.setattr(Bench, "train", None)
    assert figures.learning_curve(bench, store, job, 4, 0) == first


def test_figures_and_tables_know_the_papers_data_sets() -> None:
    assert set(figures.PANEL_SETS.values()) == TASKS.keys()
