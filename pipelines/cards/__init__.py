"""How the embedded weights are measured: what the model cards and the documents report."""
