"""What a fitted model is judged by and used for: estimates held against each other, in files and in tables."""
