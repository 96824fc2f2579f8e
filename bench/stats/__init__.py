"""Pure numbers: estimates, contrasts, length and style control, the bias of judges. Reads no files."""
