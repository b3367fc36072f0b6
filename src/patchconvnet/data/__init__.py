"""Pixels and labels: data sets by name, the one preprocessing, augmentation in batches on the device."""
