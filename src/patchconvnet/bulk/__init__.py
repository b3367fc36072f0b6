"""Many images at once: predictions as Parquet files, on one machine or on a Ray cluster."""
