"""How fast, how small and how far: what the documents say of speed and memory, measured again."""
