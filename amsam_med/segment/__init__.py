"""``amsam segment``: any number of files, folders, archives and servers; restartable, with errors kept per file.

``run`` has the function. ``inputs`` lists the files and names their results, ``stages`` processes them, ``ray`` does so
on several machines, ``formats`` is the table of result formats, ``journal`` records the run, and ``report`` writes its
HTML page.
"""

from amsam_med.segment.run import DEVICES as DEVICES
from amsam_med.segment.run import ENGINES as ENGINES
from amsam_med.segment.run import REPORT as REPORT
from amsam_med.segment.run import SHOWN_FAILURES as SHOWN_FAILURES
from amsam_med.segment.run import Progress as Progress
from amsam_med.segment.run import SegmentOptions as SegmentOptions
from amsam_med.segment.run import SegmentSummary as SegmentSummary
from amsam_med.segment.run import Step as Step
from amsam_med.segment.run import result_labels as result_labels
from amsam_med.segment.run import segment as segment
from amsam_med.verbs import make_callable

make_callable(__name__)
