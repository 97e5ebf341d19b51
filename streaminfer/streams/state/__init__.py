"""State of recurrent models, kept per stream and batched across streams."""
