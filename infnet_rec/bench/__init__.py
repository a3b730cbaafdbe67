"""What is measured: the tower against the paper's literal form, lookups, whole steps, and the machine's own limits."""
