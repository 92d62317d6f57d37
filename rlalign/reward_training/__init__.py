"""`rlalign rewards train`: classifiers from labelled examples, measured, saved without pickles."""
