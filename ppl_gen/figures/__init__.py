"""Pictures, one kind a file: functions that return a matplotlib `Figure` and touch neither disk nor global state. Only
`run.py`, which draws all of a run, puts them there."""
