"""Search-QA: answer a question by searching a corpus, as in Search-R1 and verl-agent."""
