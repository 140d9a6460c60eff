"""ALFWorld on the genuine TextWorld engine."""
