"""All-reduce programs: built, checked, counted, run."""
