"""Images, masks and data sets: files in, files out."""
