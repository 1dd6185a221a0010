"""``amsam segment``: any number of files, folders, archives and servers, restartable, faults kept per file.

``run`` is the verb. ``inputs`` are the files and the names of their results, ``stages`` what happens to one of them,
``ray`` the same on several machines, ``formats`` what is written of it, ``journal`` what is kept of the run, ``report``
the page about it.
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
