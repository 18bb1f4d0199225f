"""HTTP as values: heads, bodies, dates and how long an answer may be kept."""
