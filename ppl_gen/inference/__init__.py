"""What is done with a model/guide pair. Nothing here knows a particular model or guide."""
