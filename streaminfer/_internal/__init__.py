"""Support code that every part of the package uses."""
