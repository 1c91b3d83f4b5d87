"""What is found of fitted models: estimates, evaluations, and runs side by side."""
