"""Pictures, one kind a file. Each function returns a matplotlib `Figure` and touches neither disk nor global state."""
