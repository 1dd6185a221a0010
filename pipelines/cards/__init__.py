"""Evaluation of the embedded weights, as reported by the model cards and the documents."""
