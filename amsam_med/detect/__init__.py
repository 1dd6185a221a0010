"""Boxes without clicks: a one-class detector, how it is trained and how good it is.

Only :mod:`amsam_med.detect.yolo` needs ultralytics (AGPL-3.0).
"""
