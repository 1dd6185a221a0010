"""Imports every file that writes down cases."""

# ruff: noqa: F401

from tests.attack import bundles, commands, dicomweb, labelled, processes, records, server, weights
from tests.attack.files import archives, dicom, names, nifti, pictures, special
