"""Jobs a user runs: each takes one frozen config and leaves one run folder."""
