"""Families of guides q(z | x). Each file shows the Pyro code of one family."""
