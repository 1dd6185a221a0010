"""The app's folder for MONAI Label's own command, and a server process for tests and benchmarks."""
