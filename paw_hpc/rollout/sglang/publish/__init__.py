"""New weights from the policy to the servers that play the next episodes, by three paths, with a check."""
