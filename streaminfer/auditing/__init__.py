"""Checks of a whole stack: audit, privacy checklist, record of processing, proof."""
