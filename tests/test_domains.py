"""One entry and one folder make a domain: what the entry says and what the folder says fit, and everybody asks them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from amsam_med.bundle_settings import as_configured
from amsam_med.data.dicom import shared as dicom_results
from amsam_med.domains import DEFAULT_BUNDLE, DOMAINS, Domain
from amsam_med.weights import known, shipped_bundles
from pipelines.cards import model_card, rivals, unet
from pipelines.domains import MEASURED, base_of, class_name
from pipelines.paper import tasks
from pipelines.weights import adapters, detectors, release
from tests.conftest import REPOSITORY

FOLDERS = ("amsam_med", "pipelines")
RECIPES = {"pipelines/cards/nothing.py", "pipelines/cards/rivals.py", "pipelines/weights/detectors.py"}
"""They hold ways to make images for a domain, which is code."""


def test_there_is_one_entry_for_each_shipped_bundle() -> None:
    assert sorted(domain.bundle for domain in DOMAINS) == shipped_bundles()
    assert DEFAULT_BUNDLE in shipped_bundles()
    assert len(MEASURED) == sum(len(domain.titles) for domain in DOMAINS)


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.bundle)
def test_an_entry_fits_its_bundle(domain: Domain) -> None:
    registered = known()
    assert registered[domain.bundle].file == f"bundles/{domain.bundle}/models/model.pt"
    assert registered[domain.detector].file == f"bundles/{domain.bundle}/models/detector.safetensors"
    assert registered[base_of(domain)].is_embedded
    assert domain.detector == f"{class_name(domain)}-detector"
    assert domain.adapter_settings.keys() <= as_configured(domain.bundle, "train.yaml").keys()


@pytest.mark.parametrize(
    ("bundle", "meaning"), [("amsam_isic", dicom_results.SKIN_LESION), ("amsam_body", dicom_results.PERSON)]
)
def test_codes_for_dicom_are_those_of_the_bundle(bundle: str, meaning: dicom_results.SegmentMeaning) -> None:
    (said,) = json.loads((REPOSITORY / "bundles" / bundle / "configs" / "metadata.json").read_text())["segments"]
    assert said["label"] == meaning.label
    for code, parts in ((meaning.category, said["category"]), (meaning.type, said["type"])):
        assert [code.scheme_designator, code.value, code.meaning] == parts


def test_the_pipelines_know_all_domains() -> None:
    bundles = {domain.bundle for domain in DOMAINS}
    assert {domain.bundle for domain in adapters.TASKS.values()} == bundles
    assert {domain.bundle for domain in detectors.KINDS.values()} == bundles
    assert {task.bundle for task in unet.TASKS.values()} == bundles
    assert model_card.CARDS.keys() == release.DETECTORS.keys() == bundles
    assert rivals.IMAGES.keys() <= bundles
    assert tasks.TASKS.keys() == MEASURED.keys()


def test_what_pipelines_are_told_is_what_the_paper_and_the_cards_were_made_with() -> None:
    lesions, people = tasks.TASKS["isic2018"], tasks.TASKS["human_vikram"]
    assert (lesions.title, lesions.class_name, lesions.is_upright) == ("ISIC 2018", "lesion", False)
    assert (people.title, people.class_name, people.is_upright) == ("Human (Vikram)", "person", True)
    assert unet.TASKS["isic2018"] == unet.Task("isic2018", {"isic2018/train": 1.0}, "isic2018/val", "amsam_isic")
    assert unet.TASKS["human_vikram"].shares == {"human_vikram": 0.5, "pretrain/ccp": 0.5}
    card = model_card.CARDS["amsam_isic"]
    assert card.others == (("isic2018", "train"), ("isic2018", "val"), ("ham10000", None))
    assert card.files == ("amsam_isic", "lesion-detector", "tiny")


def test_a_new_domain_is_trained_without_code_of_its_own(labelled_folder: Path, tmp_path: Path) -> None:
    part = (labelled_folder.name, None)
    ulcers = replace(DOMAINS[0], bundle="ulcers", examples=(part,), validation=None, also_learned=())
    assert len(adapters.examples(ulcers, labelled_folder.parent, tmp_path)) == 6
    split = detectors.plain_split(ulcers, labelled_folder.parent, tmp_path, 0)
    assert len(split.train) + len(split.validation) == 6


def test_nobody_else_names_a_bundle_or_a_detector() -> None:
    names = "|".join(name for domain in DOMAINS for name in (domain.bundle, domain.detector))
    literal = re.compile(rf"""["']({names})["']""")
    files = [file for folder in FOLDERS for file in sorted((REPOSITORY / folder).rglob("*.py"))]
    assert len(files) > 100
    naming = {file.relative_to(REPOSITORY).as_posix() for file in files if literal.search(_code(file))}
    assert naming - RECIPES == {"amsam_med/domains.py", "pipelines/monailabel/pictures.py"}


def _code(file: Path) -> str:
    """A file without its docstrings, which teach by example."""
    return re.sub(r'"""(?:.|\n)*?"""', "", file.read_text(encoding="utf-8"))
