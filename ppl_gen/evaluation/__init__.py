"""What is estimated of a fitted model, and what it is used for."""
