"""Folders of images become masks, overlays and a record, whatever lies in them and however the run ends."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from amsam_med import files
from amsam_med.bundle import open_bundle
from amsam_med.checkpoint import save_adapter
from amsam_med.data.outlines import FLAG_COLOUR
from amsam_med.data.readers import image_size, read_image, read_mask
from amsam_med.errors import ConfigError, DataError, WeightsError
from amsam_med.infer import AGREEMENT_IOU, SURE_DICE
from amsam_med.model import build_amsam
from amsam_med.segment import SegmentOptions, SegmentSummary, Step, segment
from amsam_med.segment.journal import COLUMNS
from amsam_med.segment.stages import _in_order
from amsam_med.weights import sha256
from tests.small_bundle import INPUT_SIZE, DarkObjectDetector, write_picture, write_small_bundle

Run = Callable[..., SegmentSummary]


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture
def options(small_bundle: Path) -> SegmentOptions:
    return SegmentOptions(
        str(small_bundle), formats=("png",), device="cpu", batch_size=2, overrides={"detector": DarkObjectDetector()}
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures, one of them in a sub-folder, and a file that is none of them."""
    folder = tmp_path / "photos"
    write_picture(folder / "a.png", 10, (80, 48))
    write_picture(folder / "b.jpg", 20, (48, 80))
    write_picture(folder / "c.png", 250, (64, 64))  # nothing dark in it
    write_picture(folder / "sub" / "a.png", 40, (200, 100))
    (folder / "notes.txt").write_text("not an image")
    return folder


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "results.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def run_of(output: Path) -> dict[str, object]:
    run: dict[str, object] = json.loads((output / "run.json").read_text())
    return run


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def stop_after(count: int, action: Callable[[], None]) -> Callable[[Step], None]:
    def progress(step: Step) -> None:
        if step.finished == count:
            action()

    return progress


def fail() -> None:
    raise RuntimeError("power cut")


def test_a_folder_becomes_masks_and_overlays_in_the_same_sub_folders(
    photos: Path, tmp_path: Path, options: SegmentOptions
) -> None:
    summary = segment([photos], tmp_path / "out", replace(options, formats=("png", "overlay")))
    assert (summary.done, summary.failed, summary.skipped, summary.images) == (4, 0, 0, 4)
    stems = ("a", "b", "c", "sub/a")
    assert files_in(tmp_path / "out" / "masks") == sorted(f"{stem}_segmentation.png" for stem in stems)
    assert files_in(tmp_path / "out" / "overlays") == sorted(f"{stem}_overlay.jpg" for stem in stems)


def test_masks_are_those_of_the_bundles_parts_at_the_images_own_size(
    photos: Path, tmp_path: Path, options: SegmentOptions
) -> None:
    segment([photos], tmp_path / "out", options)
    parser = open_bundle(options.bundle, "inference", {**options.overrides, "device": torch.device("cpu")})
    parts = {
        name: parser.get_parsed_content(name) for name in ("preprocessing", "inferer", "network", "postprocessing")
    }
    for stem, name in {"a": "a.png", "b": "b.jpg", "c": "c.png", "sub/a": "sub/a.png"}.items():
        item = parts["preprocessing"]({"image": str(photos / name)})
        logits = parts["inferer"].predict(item["image"][None], parts["network"]).mask_logits[0]
        expected = parts["postprocessing"]({**item, "pred": logits})["pred"].numpy()[0]
        written = read_mask(tmp_path / "out" / "masks" / f"{stem}_segmentation.png")
        assert written.shape == image_size(photos / name)
        assert 0 < expected.mean() < 1
        assert np.array_equal(written, expected)


def test_a_jpeg_that_is_damaged_inside_is_segmented_and_flagged(tmp_path: Path, options: SegmentOptions) -> None:
    whole = write_picture(tmp_path / "in" / "whole.jpg", 20, (600, 400)).read_bytes()
    half = len(whole) // 2
    (tmp_path / "in" / "damaged.jpg").write_bytes(whole[:half] + bytes(300) + whole[half + 300 :])
    segment([tmp_path / "in"], tmp_path / "out", options)
    flags = {Path(row["file"]).name: "damaged-file" in row["flags"].split(";") for row in rows_of(tmp_path / "out")}
    assert flags == {"damaged.jpg": True, "whole.jpg": False}
    assert "damaged-file" in (tmp_path / "out" / "report.html").read_text()


def test_a_row_tells_box_area_and_trust_in_the_images_pixels(
    photos: Path, tmp_path: Path, options: SegmentOptions
) -> None:
    segment([photos / "sub"], tmp_path / "out", options)
    (row,) = rows_of(tmp_path / "out")
    mask = read_mask(tmp_path / "out" / row["mask_file"])
    assert (row["height_px"], row["width_px"]) == ("100", "200")
    edges = [float(row[f"box_{edge}_px"]) for edge in ("x1", "y1", "x2", "y2")]
    assert edges == pytest.approx([50, 25, 150, 75], abs=200 / INPUT_SIZE)
    assert (row["box_source"], row["box_confidence"], row["error"]) == ("detector", "1.0", "")
    assert int(row["area_px"]) == mask.sum()
    assert float(row["area_percent"]) == pytest.approx(100 * mask.mean(), abs=1e-3)
    assert 0 <= float(row["predicted_iou"]) <= 1
    assert 0 < float(row["certainty"]) <= 1
    assert ("box-mask-disagree" in row["flags"]) == (float(row["box_agreement"]) < AGREEMENT_IOU)
    assert ("unsure-mask" in row["flags"]) == (float(row["certainty"]) < SURE_DICE)
    assert float(row["seconds"]) > 0


def test_an_image_without_a_detection_is_counted_and_has_no_box(
    photos: Path, tmp_path: Path, options: SegmentOptions
) -> None:
    assert segment([photos], tmp_path / "out", options).without_box == 1
    row = rows_of(tmp_path / "out")[2]
    assert Path(row["file"]).name == "c.png"
    assert row["box_source"] == "not found"
    assert "no-box" in row["flags"].split(";")
    assert "box-mask-disagree" not in row["flags"]
    assert {row[f"box_{edge}_px"] for edge in ("x1", "y1", "x2", "y2")} == {""}
    assert row["box_agreement"] == ""


def test_without_a_detector_there_is_no_box(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    segment([photos / "a.png"], tmp_path / "out", replace(options, overrides={}))
    (row,) = rows_of(tmp_path / "out")
    assert (row["box_source"], row["box_x1_px"], row["box_agreement"]) == ("none", "", "")


def test_a_flagged_image_is_counted_and_its_overlay_says_so(
    photos: Path, tmp_path: Path, options: SegmentOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = replace(options, formats=("png", "overlay"))
    for limit in (0.0, 1.1):
        monkeypatch.setattr("amsam_med.infer.SURE_DICE", limit)
        monkeypatch.setattr("amsam_med.infer.AGREEMENT_IOU", limit)
        assert segment([photos / "a.png"], tmp_path / str(limit), both).flagged == (limit > 0)
    (row,) = rows_of(tmp_path / "1.1")
    assert row["flags"] == "box-mask-disagree;unsure-mask"
    overlays = [read_image(tmp_path / folder / "overlays" / "a_overlay.jpg").pixels for folder in ("0.0", "1.1")]
    off = [np.abs(pixels - np.array(FLAG_COLOUR)[:, None, None]) for pixels in overlays]
    is_red = [(one < 30).all(axis=0) for one in off]
    assert not is_red[0].any()
    assert is_red[1][-4:].mean() > 0.3


def test_other_views_do_not_mix_with_earlier_results(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    segment([photos], tmp_path / "out", options)
    with pytest.raises(ConfigError, match="made with another test_views"):
        segment([photos], tmp_path / "out", replace(options, test_views="mirror"))


def test_broken_files_become_rows_and_the_rest_is_done(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    for name in ("aa.png", "ab.png", "ac.jpg"):  # more than a batch of them
        (photos / name).write_bytes(b"\x89PNG half a picture")
    summary = segment([photos], tmp_path / "out", options)
    assert (summary.done, summary.failed, summary.is_interrupted) == (4, 3, False)
    failed = [row for row in rows_of(tmp_path / "out") if row["error"]]
    assert [Path(row["file"]).name for row in failed] == ["aa.png", "ab.png", "ac.jpg"]
    assert all("not an image of a known format" in row["error"] and not row["mask_file"] for row in failed)
    assert [Path(file).name for file, _ in summary.failures] == ["aa.png", "ab.png", "ac.jpg"]


def test_an_image_that_cannot_be_written_fails_alone(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    summary = segment([photos / "a.png"], tmp_path / "out", options)
    (tmp_path / "out" / "masks" / "sub").write_text("a file where a folder should be")
    summary = segment([photos], tmp_path / "out", options)
    assert (summary.done, summary.failed, summary.skipped) == (2, 1, 1)
    assert summary.failures == [((photos / "sub" / "a.png").as_posix(), "File exists")]


def test_rows_are_sorted_by_file_and_have_the_documented_columns(
    photos: Path, tmp_path: Path, options: SegmentOptions
) -> None:
    segment([photos / "sub", photos / "c.png", photos / "a.png"], tmp_path / "out", options)
    rows = rows_of(tmp_path / "out")
    assert [row["file"] for row in rows] == [(photos / name).as_posix() for name in ("a.png", "c.png", "sub/a.png")]
    assert tuple(rows[0]) == COLUMNS


def test_results_in_an_input_folder_are_no_inputs(photos: Path, options: SegmentOptions) -> None:
    both = replace(options, formats=("png", "overlay"))
    segment([photos / "a.png"], photos / "out", both)
    assert segment([photos], photos / "second", both).images == 4
    assert segment([photos], photos, both).images == 4  # the input folder itself as output


def test_a_second_run_skips_what_is_done(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    segment([photos], tmp_path / "out", options)
    rows = rows_of(tmp_path / "out")
    write_picture(photos / "d.png", 50)
    summary = segment([photos], tmp_path / "out", options)
    assert (summary.done, summary.skipped) == (1, 4)
    assert [row for row in rows_of(tmp_path / "out") if not row["file"].endswith("d.png")] == rows
    assert len(rows_of(tmp_path / "out")) == 5


def test_overwrite_does_everything_again(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    segment([photos], tmp_path / "out", options)
    mask = tmp_path / "out" / "masks" / "a_segmentation.png"
    written = mask.read_bytes()
    mask.write_bytes(b"spoilt")
    summary = segment([photos], tmp_path / "out", replace(options, overwrite=True))
    assert (summary.done, summary.skipped) == (4, 0)
    assert mask.read_bytes() == written
    assert len(rows_of(tmp_path / "out")) == 4


def test_failed_lost_and_changed_images_are_done_again(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    (photos / "d.png").write_bytes(b"half")
    segment([photos], tmp_path / "out", options)
    write_picture(photos / "d.png", 60)
    write_picture(photos / "b.jpg", 70)
    (tmp_path / "out" / "masks" / "a_segmentation.png").unlink()
    summary = segment([photos], tmp_path / "out", options)
    assert (summary.done, summary.failed, summary.skipped) == (3, 0, 2)
    assert [row["error"] for row in rows_of(tmp_path / "out")] == [""] * 5


def test_an_image_that_breaks_loses_its_old_results(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    segment([photos], tmp_path / "out", replace(options, formats=("png", "overlay")))
    (photos / "a.png").write_bytes(b"half")
    assert segment([photos], tmp_path / "out", options).failed == 1
    assert not [name for name in files_in(tmp_path / "out") if "/a_" in name and "sub" not in name]


def test_a_format_asked_for_later_is_added(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    segment([photos], tmp_path / "out", options)
    assert segment([photos], tmp_path / "out", replace(options, formats=("overlay",))).done == 4
    assert segment([photos], tmp_path / "out", replace(options, formats=("png", "overlay"))).skipped == 4
    assert all(row["mask_file"] and row["overlay_file"] for row in rows_of(tmp_path / "out"))


def test_another_folder_with_the_same_names_is_refused(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    write_picture(tmp_path / "others" / "a.png", 90)
    segment([photos], tmp_path / "out", options)
    with pytest.raises(ConfigError, match=r"holds results of .*photos/a\.png under the name that those of .*others/a"):
        segment([tmp_path / "others"], tmp_path / "out", options)
    assert segment([tmp_path / "others"], tmp_path / "out", replace(options, overwrite=True)).done == 1
    assert len(rows_of(tmp_path / "out")) == 4  # the replaced image's row is gone, the other three stay


def test_inputs_and_output_may_move_together(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    segment([photos], tmp_path / "out", options)
    shutil.move(photos, tmp_path / "moved")
    shutil.move(tmp_path / "out", tmp_path / "results")
    assert segment([tmp_path / "moved"], tmp_path / "results", options).skipped == 4


def test_other_weights_do_not_mix_with_earlier_results(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    segment([photos], tmp_path / "out", options)
    before = run_of(tmp_path / "out")["digest"]
    other = replace(options, bundle=str(write_small_bundle(tmp_path / "other", seed=1)))
    with pytest.raises(ConfigError, match=r"made with another weights\.model; .* --overwrite"):
        segment([photos], tmp_path / "out", other)
    assert segment([photos / "a.png"], tmp_path / "out", replace(other, overwrite=True)).done == 1
    assert run_of(tmp_path / "out")["digest"] != before
    assert len(rows_of(tmp_path / "out")) == 1


def test_the_same_bundle_elsewhere_goes_on(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    segment([photos], tmp_path / "out", options)
    shutil.copytree(options.bundle, tmp_path / "copy")
    assert segment([photos], tmp_path / "out", replace(options, bundle=str(tmp_path / "copy"))).skipped == 4


@pytest.mark.parametrize("name", ["masks/a_segmentation.png", "overlays/deep/er/x.png", "run.json"])
def test_files_of_unknown_origin_are_never_written_over(
    name: str, photos: Path, tmp_path: Path, options: SegmentOptions
) -> None:
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("ground truth")
    with pytest.raises(ConfigError, match=f"holds {name}, which no run of"):
        segment([photos], tmp_path / "out", replace(options, overwrite=True))
    assert files_in(tmp_path / "out") == [name]


def test_a_run_that_dies_keeps_its_rows_and_is_continued(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        segment([photos], tmp_path / "out", options, stop_after(2, fail))
    assert run_of(tmp_path / "out")["state"] == "failed"
    assert len(rows_of(tmp_path / "out")) == 2
    summary = segment([photos], tmp_path / "out", options)
    assert (summary.done, summary.skipped) == (2, 2)
    assert run_of(tmp_path / "out")["state"] == "complete"


def test_rows_are_on_disk_as_soon_as_they_are_reported(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    seen = []
    segment([photos], tmp_path / "out", options, lambda step: seen.append((len(rows_of(tmp_path / "out")), step.total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_table_is_made_anew_from_the_journal(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    segment([photos], tmp_path / "out", options)
    table = tmp_path / "out" / "results.csv"
    whole = table.read_bytes()
    table.write_bytes(whole[:-8])
    assert segment([photos], tmp_path / "out", options).skipped == 4
    assert table.read_bytes() == whole


def test_two_runs_do_not_write_to_one_folder(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    def again() -> None:
        with pytest.raises(ConfigError, match="another run is writing to"):
            segment([photos], tmp_path / "out", options)

    assert segment([photos], tmp_path / "out", options, stop_after(1, again)).done == 4


def test_ctrl_c_finishes_the_batch_and_keeps_its_results(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    before = signal.getsignal(signal.SIGINT)
    interrupt = stop_after(1, lambda: os.kill(os.getpid(), signal.SIGINT))
    summary = segment([photos], tmp_path / "out", replace(options, batch_size=1), interrupt)
    assert summary.is_interrupted
    assert 1 <= summary.done < 4
    assert len(rows_of(tmp_path / "out")) == summary.done == len(files_in(tmp_path / "out" / "masks"))
    assert run_of(tmp_path / "out")["state"] == "interrupted"
    assert signal.getsignal(signal.SIGINT) is before
    assert segment([photos], tmp_path / "out", options).skipped == summary.done


def test_a_second_ctrl_c_ends_the_run_at_once(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        segment([photos], tmp_path / "out", options, stop_after(1, twice))
    assert len(rows_of(tmp_path / "out")) == 1


def test_a_run_in_another_thread_leaves_signals_alone(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    summaries: list[SegmentSummary] = []
    thread = threading.Thread(target=lambda: summaries.append(segment([photos], tmp_path / "out", options)))
    thread.start()
    thread.join()
    assert [summary.done for summary in summaries] == [4]


def test_the_run_says_what_made_the_results(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    segment([photos], tmp_path / "out", options)
    run = run_of(tmp_path / "out")
    flagged = sum(bool(row["flags"]) for row in rows_of(tmp_path / "out"))
    assert run["fingerprint"]["weights"] == {  # type: ignore[index]
        "model": sha256(Path(options.bundle) / "models" / "model.pt"),
        "detector": None,
    }
    assert run["counts"] == {
        "images": 4,
        "done": 4,
        "failed": 0,
        "skipped": 0,
        "pictures": 4,
        "without_box": 1,
        "flagged": flagged,
    }
    assert run["command"].startswith(f"amsam segment {photos} -o {tmp_path / 'out'} --bundle")  # type: ignore[attr-defined]
    assert run["settings"]["device"] == "cpu"  # type: ignore[index]
    assert str(tmp_path) not in json.dumps(run["fingerprint"])
    assert {"amsam-med", "torch", "python"} <= set(run["versions"])  # type: ignore[call-overload]


def test_a_bundles_own_detector_gives_the_boxes(photos: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    segment([photos], tmp_path / "out", SegmentOptions(str(tiny_bundle), device="cpu"))
    assert {row["box_source"] for row in rows_of(tmp_path / "out")} <= {"detector", "not found"}
    used = run_of(tmp_path / "out")["fingerprint"]["weights"]  # type: ignore[index]
    assert used["detector"] == sha256(tiny_bundle / "models" / "detector.safetensors")


def test_an_adapter_takes_the_models_place(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    base = tmp_path / "base.pth"
    torch.manual_seed(3)
    state = build_amsam("tiny", input_size=INPUT_SIZE).state_dict()
    torch.save({name: tensor for name, tensor in state.items() if "lora_" not in name}, base)
    save_adapter(build_amsam("tiny", input_size=INPUT_SIZE, base_weights=base), tmp_path / "adapter.safetensors")
    adapted = replace(options, adapter=tmp_path / "adapter.safetensors", base_weights=base)
    assert segment([photos], tmp_path / "out", adapted).done == 4
    used = run_of(tmp_path / "out")["fingerprint"]["weights"]  # type: ignore[index]
    assert used == {"base": sha256(base), "adapter": sha256(tmp_path / "adapter.safetensors"), "detector": None}


def test_the_networks_threads_are_left_as_they_were(photos: Path, tmp_path: Path, options: SegmentOptions) -> None:
    before = torch.get_num_threads()
    segment([photos], tmp_path / "out", options)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *found] == [before, before]


def test_too_little_memory_names_the_option_to_change(
    photos: Path, tmp_path: Path, options: SegmentOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("amsam_med.infer.PromptInferer.predict", run_out)
    with pytest.raises(ConfigError, match="batches of 2 images; give a smaller --batch-size"):
        segment([photos], tmp_path / "out", options)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"formats": ("gif",)}, "unknown format gif; known are png, overlay"),
        ({"stores": True}, "storing back sends DICOM results"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"device": "tpu"}, "device='tpu'"),
    ],
)
def test_wrong_options_are_refused(change: dict[str, object], text: str, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        segment([photos], tmp_path / "out", SegmentOptions(**change))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_missing_and_empty_inputs_and_missing_weights_are_refused(
    photos: Path, tmp_path: Path, options: SegmentOptions
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        segment([tmp_path / "nowhere"], tmp_path / "out", options)
    with pytest.raises(DataError, match="empty: no images"):
        segment([photos, tmp_path / "empty"], tmp_path / "out", options)
    with pytest.raises(DataError, match="no inputs"):
        segment([], tmp_path / "out", options)
    with pytest.raises(WeightsError, match="does not exist"):
        segment([photos], tmp_path / "out", replace(options, overrides={"model_file": "nowhere.pt"}))


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], "found no files. Give a folder with images"),
        (
            ["a.txt", "b.TXT", "sub/c.csv", "Doe.Jane-1970"],
            r"found 4 files of other kinds \(2 \.txt, 1 \.csv, 1 without a",
        ),
    ],
)
def test_a_folder_without_images_is_named_with_what_it_holds(names: list[str], found: str, tmp_path: Path) -> None:
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for name in names:
        (tmp_path / "photos" / name).write_text("no image")
    with pytest.raises(DataError, match=rf"photos: no images in it; {found}") as raised:
        segment([tmp_path / "photos"], tmp_path / "out")
    assert "known are .png" in str(raised.value)
    assert "Jane" not in str(raised.value)


def test_results_of_an_earlier_run_are_said_to_be_left_out(
    photos: Path, tmp_path: Path, options: SegmentOptions
) -> None:
    segment([photos], tmp_path / "out", options)
    with pytest.raises(DataError, match=r"out: no images in it; found .*, and results of earlier runs, which are left"):
        segment([tmp_path / "out"], tmp_path / "again", options)


def test_a_detector_is_read_once_for_its_sha256(
    photos: Path, tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, detector = tiny_bundle / "base.safetensors", tmp_path / "detector.safetensors"
    shutil.copyfile(tiny_bundle / "models" / "detector.safetensors", detector)  # under a name that nobody has asked for
    record = {"detector_sha256": files.sha256(detector)}
    save_adapter(build_amsam("tiny", input_size=INPUT_SIZE, base_weights=base), tmp_path / "a.safetensors", record)
    options = SegmentOptions(str(tiny_bundle), tmp_path / "a.safetensors", base, detector, device="cpu")
    read, digest = list[Path](), files.sha256

    def counted(path: Path) -> str:
        read.append(path)
        return digest(path)

    monkeypatch.setattr(files, "sha256", counted)
    segment([photos], tmp_path / "out", options)
    assert read.count(detector) == 1


def test_threads_keep_the_order_and_run_a_bounded_way_ahead() -> None:
    taken: list[int] = []

    def items() -> object:
        for item in range(20):
            taken.append(item)
            yield item

    results = _in_order(lambda item: item * 10, items(), workers=3, depth=4)  # type: ignore[arg-type, return-value]
    for count, result in enumerate(results):
        assert result == 10 * count
        assert len(taken) <= count + 5
    assert len(taken) == 20
