"""The client's decisions: what is still good, who fetches it, what is tried again."""
