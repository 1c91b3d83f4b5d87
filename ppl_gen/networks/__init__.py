"""Encoders and decoders, flows, and distributions that are summed fast."""
