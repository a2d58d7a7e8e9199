"""Text environments: tasks, episodes in killable processes, shards of slots."""
