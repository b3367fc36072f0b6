"""Where images come from besides folders: tables, Hugging Face data sets, shards."""
