"""How things are shown: the style of pictures, tables and pages in HTML."""
