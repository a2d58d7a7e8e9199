"""The teacher: the same model, shown the feedback, scoring the action tokens of the student."""
