"""ALFWorld: household tasks in text, generated or official games."""
