"""Pictures, one kind a file: functions that turn arrays into a matplotlib `Figure`, and the captions of these pictures.
They use no disk, no global state, no model and no run."""
