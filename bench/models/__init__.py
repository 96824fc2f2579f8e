"""Models of the hub and of folders: tokens, templates, sizes."""
