"""One key over many sessions."""
