"""How files are saved: whole, or not at all."""
