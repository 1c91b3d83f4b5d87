"""Families of guides q(z | x), one file each."""
