"""The floor below all others: it imports none of them."""
