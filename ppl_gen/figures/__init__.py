"""Pictures, one kind a file: functions from arrays to a matplotlib `Figure`, beside the captions of what they draw.
They touch neither disk nor global state, and know no model and no run."""
