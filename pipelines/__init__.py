"""How the embedded weights were made, how they are measured, and the paper's experiments, a room each."""
