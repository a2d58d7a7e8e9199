"""AppWorld: errands done by writing code against apps. Imports nothing: another interpreter loads it."""
