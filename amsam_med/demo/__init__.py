"""The demo: ``run`` does everything once on synthetic images, ``page`` lays out what it shows."""

from amsam_med.demo.run import SHOWN as SHOWN
from amsam_med.demo.run import DemoResult as DemoResult
from amsam_med.demo.run import run_demo as run_demo
