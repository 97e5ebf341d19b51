"""Files that are saved completely or not at all."""
