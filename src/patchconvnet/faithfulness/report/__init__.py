"""The audit as one HTML page, JSON and CSV."""
