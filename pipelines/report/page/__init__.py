"""report.html: one self-contained page of a run, or of several; made of the run folder's files alone."""
