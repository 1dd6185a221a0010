"""The app's folder for MONAI Label's own command, and a running server for whoever needs one."""
