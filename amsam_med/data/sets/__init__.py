"""Data sets of images and masks: their folders, parts and sources.

``pairs`` matches images with masks; ``check`` reads all of them. Each known data set has a file of its own, which
``registry`` finds. Bundles' configurations name them through :mod:`amsam_med.data.datalists`.
"""
