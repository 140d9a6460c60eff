"""Search-augmented question answering: questions of seven sets, a retriever over Wikipedia passages, exact
match as reward."""
