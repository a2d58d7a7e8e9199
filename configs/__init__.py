"""Configuration: one typed schema, recipes in YAML, every problem reported at once."""
