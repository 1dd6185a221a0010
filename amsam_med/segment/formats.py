"""The table of result formats: what a folder run can write, for which images, and into which folder.

It imports all writers, so that no writer needs to import another.
"""

from __future__ import annotations

from pathlib import Path

from amsam_med.data.dicom.seg import write_dicom_seg
from amsam_med.data.dicom.shared import dicom_labels
from amsam_med.data.dicom.sr import MeasuredObject, dicom_measurements, write_dicom_sr
from amsam_med.data.results import FileResult, Format, Labels, Result
from amsam_med.data.writers import MASK_ENDING, write_contour, write_mask_png, write_nifti, write_overlay


def _write_overlay(result: Result, path: Path) -> None:
    write_overlay(result.pixels, result.mask, path, result.box_in_original, result.flags)


def _write_dicom_seg(result: FileResult, path: Path) -> None:
    write_dicom_seg(result.source, result.masks, path, *dicom_labels(result.labels), secret=_secret(result.labels))


def _write_dicom_sr(result: FileResult, path: Path) -> None:
    objects = [
        MeasuredObject(dicom_measurements(measured), frame=frame) for frame, measured in enumerate(result.measured, 1)
    ]
    segments, algorithm = dicom_labels(result.labels)
    segmentation = result.written.get("dicom-seg")
    write_dicom_sr(result.source, objects, path, segments, algorithm, segmentation, secret=_secret(result.labels))


def _secret(labels: Labels) -> bytes | None:
    return None if labels.deidentified_with is None else labels.deidentified_with.encode()


FORMATS = {
    "png": Format("masks", "mask_file", MASK_ENDING, lambda result, path: write_mask_png(result.mask, path)),
    "overlay": Format("overlays", "overlay_file", "_overlay.jpg", _write_overlay),
    "contour": Format(
        "contours", "contour_file", "_contour.geojson", lambda result, path: write_contour(result.mask, path)
    ),
    "nifti": Format("nifti", "nifti_file", "_segmentation.nii.gz", of_file=write_nifti),
    "dicom-seg": Format("dicom_seg", "dicom_seg_file", "_seg.dcm", of_file=_write_dicom_seg, sources=("DICOM",)),
    "dicom-sr": Format("dicom_sr", "dicom_sr_file", "_sr.dcm", of_file=_write_dicom_sr, sources=("DICOM",)),
}
