"""Display: the shared style of pictures, tables and HTML pages."""
