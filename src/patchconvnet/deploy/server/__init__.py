"""`patchconvnet serve`: a classifier with its maps over HTTP."""
