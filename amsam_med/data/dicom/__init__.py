"""DICOM: reading images, writing results, DICOMweb servers, and de-identification.

``reader`` decodes pixels; ``header`` is the only code that reads the attributes before them. ``seg`` and ``sr`` write
results, with ``shared`` for what both need. ``web`` is a client of DICOMweb servers. ``identifiers`` finds out whether
a path identifies a patient, ``deidentify`` removes identifying attributes.
"""
