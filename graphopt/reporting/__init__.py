"""Reports: what a run says, as records, as text."""
