"""Is a map right? Attribution methods, metrics, and an audit that measures the ones by the others."""
