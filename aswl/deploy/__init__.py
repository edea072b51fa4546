"""What leaves the house: the report of a run."""
