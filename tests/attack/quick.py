"""The cases, besides those of files, that every build tries: one or two of each kind of fault, about a second each."""

_BY_GROUP = {
    "adapters": """
        that is as it must be
        C1 code in rank
        C1 a call in calibration
        C1 code for all settings
        C1 another network in an entry that there is not
        C1 code in rank, evaluated
        C1 a path for a bundle in its record
        rank of 1e9
        base of up
        base of a line feed
        whose settings are no JSON
        whose settings are 100,000 brackets
        without settings
        of another base
        of NaN
        of another shape
        of a shape of 2^62
        Low with a byte of a tensor changed
        cut in its tensors
        whose header promises 100 GB bytes
        that is a pickle
        that is a pipe
        C2 a path of code, segment
    """,
    "detectors": """
        Low input size of 1e9
        of NaN
        whose boxes are not finite
        without tensors
        that is a pickle, called .pt
    """,
    "bases and models": """
        Low model of nothing
        model that is an archive with a pickle of code
        M5 model of NaN
        base of NaN
        Low registry that is cut, list
    """,
    "bundles": """
        not trusted, an expression, segment
        not trusted, an expression, train
        trusted, and then changed
        Low inference.yaml that is no YAML
        inference.yaml of YAML that grows to 3 GB
        inference.yaml that is a pipe
        Low metadata.json of nothing
    """,
    "words": """
        Low an input of 5,000 letters
        Low a server's address that is none
        a server that is not there
        an input that is endless
        weights called by a path
    """,
    "streams": """
        no standard output, segment
        Low no standard error, segment
        Low a full device, weights
        a pipe that nobody reads, weights
    """,
    "environment": """
        no HOME
        Low a TMPDIR that is not there
        code in the working directory under the names of modules
    """,
    "dicom, alone": """
        H6 a header of 1,000,000 empty items
        H6 a deflated file that unpacks to 300 MB
    """,
    "DICOMweb": """
        as it must be
        a search that finds HTML
        an identifier that leads up
        a search that leads to a file, 302
        a search answered by 500
        an instance that is words
    """,
    "records of segment": """
        run.json that is a list
        journal that is words
        journal whose stale result is up
        journal whose stale result is an absolute path
        journal whose cells are no JSON
        M8 journal whose cells are formulas
    """,
    "records of train": """
        M11 split.json of no JSON
        M11 checkpoint.pt of nothing
        M11 checkpoint.pt of a pickle of code
    """,
    "labelled folders": """
        an image of words, check
        an image that is a bomb, train
        a mask of words, evaluate
        M11 masks that are all black, train
        C2 a folder called by code, evaluate
        C2 an output called by code, train
    """,
    "signals": """
        SIGINT while a folder is segmented
        M3 SIGTERM while an archive is segmented
        M3 SIGHUP while a folder is segmented
        SIGSTOP and SIGCONT, and a second run into the folder
    """,
    "kill -9": """
        segment, three times at random
        M3 segment, with an archive's members unpacked, which the next run clears away
        M10 segment, within a file of many pages, whose first pages are not done again
        Low train, while a checkpoint is written, and resumed
    """,
    "disks": """
        segment into 64k
        M11 train into 200k
        an output folder that may not be written to
        a slow one: each file takes 30 ms to open
        an output within the input
        Low an output of 5,000 letters
        Low an output that is no path at all
    """,
    "changing files": """
        a picture that is gone while it is segmented
        H5 a volume that is emptied while it is read
        two runs into one folder at once
    """,
    "memory": """
        M2 too little for a picture is not said to be the picture's fault
    """,
}

QUICK = {f"{group}: {name}" for group, text in _BY_GROUP.items() for name in map(str.strip, text.strip().splitlines())}
