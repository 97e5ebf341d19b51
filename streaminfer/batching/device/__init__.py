"""Devices that several batchers share: whose batch goes next, and how much batches slow each other down."""
