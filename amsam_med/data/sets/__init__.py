"""Data sets of images and masks: how they lie on disk, what parts they have, and where they come from.

``pairs`` matches images with masks; ``check`` looks at all of them. A file for each known data set says what is special
about it; ``registry`` finds these files. Bundles' configurations name them through :mod:`amsam_med.data.datalists`.
"""
