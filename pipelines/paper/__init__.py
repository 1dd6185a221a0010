"""The paper's experiments and our own: tables and figures of trainings on a few examples."""
