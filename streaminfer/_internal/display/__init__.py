"""How things are shown: the style of pictures, tables in HTML."""
