"""Training of the embedded weights, their evaluation, and the paper's experiments, each in a package of its own."""
