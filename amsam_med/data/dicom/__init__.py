"""DICOM: images that are read, results that are written, servers that are asked, and whose data they are.

``reader`` turns files into pixels; ``header`` is the one way to read what stands before them. ``seg`` and ``sr`` are
results, ``shared`` what both have in common. ``web`` speaks to DICOMweb servers. ``identifiers`` tells whether a path
says whose an image is, ``deidentify`` removes what does.
"""
