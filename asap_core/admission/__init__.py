"""What is admitted, once and within which share, and how that's remembered."""
