"""What goes over the wire, as values, and how it's read and written."""
