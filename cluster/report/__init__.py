"""What a run's folder holds, read without Ray: definitions of its metrics, comparisons, pages."""
