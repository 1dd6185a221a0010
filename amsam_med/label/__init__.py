"""The MONAI Label app: label a few images, train, and review the rest.

``models.py`` knows which adapter is in use, and nothing of MONAI Label; ``tasks.py`` is what a server offers of it;
``app.py`` puts the tasks together; ``server.py`` starts the server, closed to what does not belong to the studies.
"""
